"""A run's folder appears complete or not at all, and an earlier one is never lost to a failure."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rankfold.bench.record import NAME as RECORD_NAME
from rankfold.errors import OutputExistsError, SpecError
from rankfold.train.load import CONFIG_NAME


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder may be written, before any work is done.

    Raises:
        OutputExistsError: If it exists and may not be replaced, or does not look like a run or an adapter.
        SpecError: If nothing can be written where it is to be.
    """
    _check_writable(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(
            f"'{folder}' exists; choose another folder, or add --overwrite to replace it."
        )
    if not any((folder / name).is_file() for name in (RECORD_NAME, CONFIG_NAME)):
        raise OutputExistsError(
            f"'{folder}' holds no run or adapter, so it is not replaced; choose another folder."
        )


def _check_writable(folder: Path) -> None:
    """Make a folder beside the one that is wanted, or where its first missing parent will be."""
    try:
        place = next((parent for parent in folder.absolute().parents if parent.exists()), folder)
        # Permissions alone do not tell: the place may be a file, or a disk that is read-only or full.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=place):
            pass
    except OSError as error:
        raise SpecError(f"cannot write '{folder}' ({error.strerror}); choose another folder.") from error


@contextmanager
def output_folder(folder: Path, *, overwrite: bool) -> Generator[Path]:
    """Give a temporary sibling that takes the place of `folder` when the block ends without an error.

    Raises:
        OutputExistsError: If `folder` may not be written.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        work = Path(scratch) / "new"
        work.mkdir()
        yield work
        check_output(folder, overwrite=overwrite)
        _swap(work, folder, Path(scratch) / "old")


def _swap(work: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        work.rename(folder)
        return
    folder.rename(old)
    try:
        work.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
