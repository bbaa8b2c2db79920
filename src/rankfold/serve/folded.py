"""Cache of plain LoRAs in folders, by the digest of the adapter, shared by processes.

A folder has its name only when it is whole. One lock covers every change of the cache; it is the system's,
so that a killed process gives it back. Each process that uses folders has a list of them, a folder of empty
files that it keeps locked; the list of a dead process counts no more.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from filelock import FileLock

from rankfold.files import CONFIG_NAME, WEIGHTS_NAME, flush, try_lock

_LOCK, _USERS, _DRAFT = ".lock", ".users", ".draft"


@final
class FoldedCache:
    """Plain LoRAs in folders; the least recently used ones that no process needs are deleted.

    Args:
        root: The cache's folder, which is made.
        most_bytes: The most bytes of all folders; those in use stay in any case.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._root = root
        self._user: tuple[Path, int] | None = None

    def hold(self, digest: str, write: Callable[[Path], None]) -> Path:
        """Return the folder of an adapter, which stays until it is released or this process ends.

        Args:
            digest: Of the adapter.
            write: Writes the LoRA into an empty folder; called if there is none yet.
        """
        folder = self._root / digest
        with self._change():
            if not _is_whole(folder):
                draft = self._root / _DRAFT
                draft.mkdir()
                write(draft)
                shutil.rmtree(folder, ignore_errors=True)
                draft.rename(folder)
                flush(self._root)
            os.utime(folder)
            (self._own_list() / digest).touch()
            self._evict()
        return folder

    def release(self, digest: str) -> None:
        """Let the folder of an adapter be deleted when the room is needed."""
        if self._user is not None:
            (self._user[0] / digest).unlink(missing_ok=True)

    @contextmanager
    def _change(self) -> Generator[None]:
        """Hold the cache's lock; whatever is unfinished then is of a process that was killed."""
        self._root.mkdir(parents=True, exist_ok=True)
        draft = self._root / _DRAFT
        with FileLock(self._root / _LOCK):
            shutil.rmtree(draft, ignore_errors=True)
            try:
                yield
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def _own_list(self) -> Path:
        """Return the folder with the digests that this process uses."""
        if self._user is None:
            folder = self._root / _USERS / secrets.token_hex(8)
            folder.mkdir(parents=True)
            handle = os.open(folder, os.O_RDONLY)
            try_lock(handle)
            self._user = folder, handle
        return self._user[0]

    def _digests_in_use(self) -> set[str]:
        """Return the digests that living processes use, and delete the lists of dead ones."""
        digests: set[str] = set()
        for user in (self._root / _USERS).iterdir():
            handle = os.open(user, os.O_RDONLY)
            try:
                if try_lock(handle):
                    shutil.rmtree(user)
                else:
                    digests.update(path.name for path in user.iterdir())
            finally:
                os.close(handle)
        return digests

    def _evict(self) -> None:
        """Delete the least recently used folders that nobody uses, until the others fit."""
        folders = [path for path in self._root.iterdir() if path.name[0] != "."]
        sizes = {path: bytes_of(path) for path in folders}
        surplus = sum(sizes.values()) - self.most_bytes
        if surplus <= 0:
            return
        in_use = self._digests_in_use()
        for path in sorted(folders, key=lambda path: path.stat().st_mtime_ns):
            if surplus > 0 and path.name not in in_use:
                shutil.rmtree(path)
                surplus -= sizes[path]


def bytes_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME))
