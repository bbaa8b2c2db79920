"""Files that are there with all their content or not at all, whatever stops the process or the machine."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rankfold.errors import OutputExistsError, SpecError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step, over an earlier one if there is one; a failure leaves that as it was.

    Raises:
        OSError: If it cannot be written.
    """
    # Hidden, so that nobody takes a draft for the file.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        flush(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: Path) -> None:
    """Check that a file or folder can be made, by making one beside it, or where its first parent will be.

    Raises:
        SpecError: If nothing can be written there.
    """
    try:
        place = next((parent for parent in path.absolute().parents if parent.exists()), path)
        # Permissions alone do not tell: the place may be a file, or a disk that is read-only or full.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=place):
            pass
    except OSError as error:
        raise SpecError(f"cannot write '{path}' ({error.strerror}); choose another folder.") from error


def check_replaceable(folder: Path, *, overwrite: bool, marks: Sequence[str], kind: str) -> None:
    """Check that a folder is free, or is of a kind that may be replaced and shall be.

    Args:
        folder: What is going to be written.
        overwrite: Whether what is there shall be replaced.
        marks: Files of which one shows that a folder is of that kind.
        kind: What such a folder holds, such as "export".

    Raises:
        OutputExistsError: If it is neither.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(
            f"'{folder}' exists; choose another folder, or add --overwrite to replace it."
        )
    if not any((folder / mark).is_file() for mark in marks):
        raise OutputExistsError(f"'{folder}' holds no {kind}, so it is not replaced; choose another folder.")


def put_in_place(work: Path, folder: Path, old: Path) -> None:
    """Give a finished folder its place; what is there is moved aside first, and back if that fails.

    Args:
        work: The finished folder.
        folder: Where it belongs.
        old: Where what is there waits until it can go, on the same disk.

    Raises:
        OSError: If it cannot be moved.
    """
    shutil.rmtree(old, ignore_errors=True)
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
