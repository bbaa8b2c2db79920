"""What the library logs, as lines on stderr."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import final

from rankfold.cli.console import note


@final
class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


@contextmanager
def shown_notes() -> Generator[None]:
    """Show what rankfold logs, from INFO on, while the block runs."""
    logger = logging.getLogger("rankfold")
    handler, level = _Notes(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
