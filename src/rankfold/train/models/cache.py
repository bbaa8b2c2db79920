"""Where rankfold keeps what it can make again, and how something is put there in one step."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return the folder named by `RANKFOLD_CACHE`, or the platform's own place for caches."""
    named = os.environ.get("RANKFOLD_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("rankfold")


@contextmanager
def new_folder(target: Path) -> Generator[Path]:
    """Give a temporary folder that becomes `target` when the block ends without an error.

    A reader sees either no `target` or a complete one. When another process was first, its result stays.

    Args:
        target: A folder that does not exist yet; its parents are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        work = Path(scratch) / "new"
        work.mkdir()
        yield work
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():
                raise
