"""Files that are there with all their content or not at all, whatever stops the process or the machine."""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

if os.name == "posix":
    import fcntl

from rankfold.errors import DataError, DiskError, OutputExistsError, SpecError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
"""The two files of a PEFT adapter's folder."""


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of an object of JSON by key, as `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: If a key is there twice.
    """
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return values


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
        DiskError: If the disk is full.
        SpecError: If it cannot be written: something else is there, say.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, content)
    except DiskError:
        raise
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
        with naming_full_disk(path):
            with draft.open("xb") as file, _hold_lock(draft):
                yield file
            flush(draft)
        check()
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    flush(path.parent)


@contextmanager
def fresh_file(path: Path) -> Generator[Path]:
    """Give the path of an empty file, which gets its name when the block ends, unless that is taken by then.

    Raises:
        OSError: If it cannot be written.
    """
    remove_drafts(path)
    draft = path.with_name(draft_name(path.name))
    try:
        draft.touch(exist_ok=False)
        with _hold_lock(draft):
            yield draft
            flush(draft)
            _name_once(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    flush(path.parent)


def _name_once(draft: Path, path: Path) -> None:
    """Give a file a name that no other may have got meanwhile."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            draft.rename(path)


_FULL = re.compile(
    r"No space left on device|File too large|Disk quota exceeded"
    r"|failed writing file|\d+ requested and \d+ written"  # torch, numpy
)


@contextmanager
def naming_full_disk(path: Path) -> Generator[None]:
    """Turn the errors of a full disk, as several libraries raise them, into one that names the file.

    Args:
        path: The file or folder that is written, as its user knows it.

    Raises:
        DiskError: If the disk is full, or the file may not become so large.
    """
    try:
        yield
    except Exception as error:
        match = _FULL.search(str(error))
        if match is None:
            raise
        reason = match[0] if match[0][0].isupper() else os.strerror(errno.ENOSPC)
        raise DiskError(
            f"cannot write '{path}' ({reason}); make room on its disk, or raise the limit on the size of "
            "files, and try again."
        ) from error


def remove_drafts(path: Path) -> None:
    """Delete the unfinished files beside a path that killed processes left."""
    for draft in _drafts_of(path):
        with _hold_lock(draft) as is_free:
            if is_free and draft.is_file():
                draft.unlink(missing_ok=True)


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
    with _scratch_beside(place) as scratch:
        work = scratch / _NEW
        with naming_full_disk(folder):
            work.mkdir()
            yield work
        open_to_readers(work)
        check()
        try:
            if _is_empty(place):
                _move_into(place, work, last)
            else:
                put_in_place(work, place, scratch / _OLD)
        except OSError as error:
            raise SpecError(f"cannot write '{folder}' ({error.strerror}); choose another folder.") from error
    flush(place.parent)


_NEW, _OLD = "new", "old"
_DRAFT, _EARLIER_DRAFT = r"[0-9a-f]{16}", r"[a-z0-9_]{8}"  # rankfold 0.1 had other names


@contextmanager
def _scratch_beside(place: Path) -> Generator[Path]:
    """Give a hidden folder beside a place until the block ends; those of killed processes go first."""
    remove_scratch(place.parent)
    for leftover in _drafts_of(place, rf"{_DRAFT}|{_EARLIER_DRAFT}"):
        _drop_leftover(leftover, place)
    scratch = place.with_name(draft_name(place.name))
    try:
        scratch.mkdir()
        with _hold_lock(scratch):
            yield scratch
    finally:
        _drop_scratch(scratch, place)


def remove_scratch(parent: Path) -> None:
    """Delete the leavings of killed processes in a folder, whichever folders they replaced.

    A folder that one of them had moved aside is moved back. One without `new` and `old` is nobody's, or that
    of a process that has just begun.
    """
    names = os.listdir(parent) if parent.is_dir() else []
    for match in filter(None, (re.fullmatch(rf"\.(.+)\.{_DRAFT}", name) for name in names)):
        leftover = parent / match[0]
        if (leftover / _NEW).is_dir() or (leftover / _OLD).is_dir():
            _drop_leftover(leftover, parent / match[1])


def _drop_leftover(leftover: Path, place: Path) -> None:
    """Delete the scratch folder of a killed process; one that is in use or holds something else stays."""
    with _hold_lock(leftover) as is_free:
        if is_free and {path.name for path in leftover.iterdir()} <= {_NEW, _OLD}:
            _drop_scratch(leftover, place)


def _drop_scratch(scratch: Path, place: Path) -> None:
    """Delete a scratch folder, once the files that were moved into it are back in their place."""
    restore_replaced(place, scratch / _OLD)
    shutil.rmtree(scratch, ignore_errors=True)


def _drafts_of(path: Path, pattern: str = _DRAFT) -> list[Path]:
    """Return the files and folders beside a path that a process has begun to write in its place."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    drafts = re.compile(rf"\.{re.escape(path.name)}\.({pattern})")
    return [path.with_name(name) for name in names if drafts.fullmatch(name)]


@contextmanager
def _hold_lock(path: Path) -> Generator[bool]:
    """Hold the lock of a draft until the block or the process ends, and tell whether it was free."""
    if os.name != "posix":
        yield False
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # of another user, or gone
        yield False
        return
    try:
        yield try_lock(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock an open file for this process, and return whether it could: no other has it locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
        for parent in (path, *path.absolute().parents):
            if parent.is_symlink() and not parent.exists():
                raise SpecError(
                    f"cannot write '{path}', because '{parent}' is a link to something that is not there; "
                    "remove the link, or choose another folder."
                )
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
    remove_drafts(path)


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
    """Move a finished folder to its place; an earlier one that is there is then at `work` or at `old`.

    The two change places in one step. Where the system cannot do that, the earlier one is moved aside, and
    back if anything stops that; after a kill between the two steps `restore_replaced` moves it back.

    Args:
        work: The finished folder.
        folder: Where it belongs.
        old: Where what is there may be moved, on the same disk.

    Raises:
        OSError: If it cannot be moved.
    """
    restore_replaced(folder, old)
    shutil.rmtree(old, ignore_errors=True)
    if not folder.exists():
        work.rename(folder)
    elif not exchange(work, folder):
        try:
            folder.rename(old)
            work.rename(folder)
        except BaseException:
            restore_replaced(folder, old)
            raise


def restore_replaced(folder: Path, old: Path) -> None:
    """Put back an earlier folder that a process moved aside and was stopped before it could replace it."""
    if old.is_dir() and not os.path.lexists(folder):
        old.rename(folder)


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two files or folders of one disk in one step; return False where the system cannot.

    Raises:
        OSError: If they cannot be moved.
    """
    if (rename := _linux_rename()) is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@cache
def _linux_rename() -> Any:
    """Return the system's `renameat2`, or None if it has none."""
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None


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
