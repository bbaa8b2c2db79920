"""The folder of an export appears complete or not at all, and only an earlier export is ever replaced."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rankfold.export.certificate import NAME as CERTIFICATE_NAME
from rankfold.files import check_replaceable, check_writable, put_in_place


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Check that an export may be written, before any work is done.

    Raises:
        OutputExistsError: If `folder` has something that may not be replaced.
        SpecError: If nothing can be written where it is to be.
    """
    _check_free(folder, overwrite=overwrite)
    check_writable(folder)


@contextmanager
def export_folder(folder: Path, *, overwrite: bool) -> Generator[Path]:
    """Give a new folder that takes the place of `folder` when the block ends without an error.

    Raises:
        OutputExistsError: If `folder` has something that may not be replaced.
    """
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as scratch:
        work = Path(scratch) / "new"
        work.mkdir()
        yield work
        _check_free(folder, overwrite=overwrite)
        put_in_place(work, folder, Path(scratch) / "old")


def _check_free(folder: Path, *, overwrite: bool) -> None:
    check_replaceable(folder, overwrite=overwrite, marks=[CERTIFICATE_NAME], kind="export")
