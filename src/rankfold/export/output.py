"""The folder of an export appears complete or not at all, and only an earlier export is ever replaced."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from rankfold.export.certificate import NAME as CERTIFICATE_NAME
from rankfold.files import check_replaceable, check_writable, whole_folder


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Check that an export may be written, before any work is done.

    Raises:
        OutputExistsError: If `folder` has something that may not be replaced.
        SpecError: If nothing can be written where it is to be.
    """
    _check_free(folder, overwrite=overwrite)
    check_writable(folder.resolve())


def export_folder(folder: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
    """Return a context with a new folder, which is put in place when the block ends without an error.

    At its end there is an OutputExistsError if by then `folder` has something that may not be replaced, and a
    SpecError if it cannot be put there.
    """
    check = partial(_check_free, folder, overwrite=overwrite)
    return whole_folder(folder, check=check, last=CERTIFICATE_NAME)


def _check_free(folder: Path, *, overwrite: bool) -> None:
    check_replaceable(folder, overwrite=overwrite, marks=[CERTIFICATE_NAME], kind="export")
