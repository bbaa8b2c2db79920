"""Messages on stderr while the library works: its log, and a hint when it is interrupted."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import final

from rankfold.cli.console import note


@final
class _Notes(logging.Handler):
    """Filter that shows every message once, however often its data is read."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            note(message)


@contextmanager
def shown_notes() -> Generator[None]:
    """Show the log of rankfold, from INFO on, while the block runs."""
    logger = logging.getLogger("rankfold")
    handler, level = _Notes(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def kept_when_interrupted(*, overwrite: bool) -> Generator[None]:
    """Say, when Ctrl-C ends the block, that nothing is lost, and which command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        same = "the same command without --overwrite" if overwrite else "the same command"
        note(f"what is done is kept; {same} goes on from there.")
        raise
