"""How long work reports what it has done; the command line gives it a face."""

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, final

EXPECTED = "seconds_left"
"""The field of `Progress.advance` in which work that knows better than its pace states the seconds left."""


class Progress(Protocol):
    """A listener of one piece of work at a time."""

    def start(self, total: int, description: str) -> None:
        """Begin work of `total` units."""
        ...

    def advance(self, done: int, **fields: object) -> None:
        """State that `done` units are finished, with what is worth showing beside (loss, accuracy)."""
        ...

    def finish(self) -> None:
        """End the work, complete or not."""
        ...


@final
class Silent:
    """A `Progress` that shows nothing."""

    def start(self, total: int, description: str) -> None:
        """Show nothing."""

    def advance(self, done: int, **fields: object) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Silence the progress bars and notes of transformers and datasets, and restore them afterwards.

    What these libraries raise as Python warnings or exceptions still passes.
    """
    with ExitStack() as restored, warnings.catch_warnings():
        _silence_transformers(restored)
        # It is of the extra `bench`; where nothing has imported it, it prints nothing.
        if (datasets := sys.modules.get("datasets")) is not None:
            _silence_datasets(datasets, restored)
        # PEFT still reads the old name of a property; its users can do nothing about that.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def _silence_transformers(restored: ExitStack) -> None:
    # Who only reads records or columns shall not wait for it.
    from transformers.utils import logging as transformers_logging

    restored.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
    if transformers_logging.is_progress_bar_enabled():
        restored.callback(transformers_logging.enable_progress_bar)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _silence_datasets(datasets: Any, restored: ExitStack) -> None:
    restored.callback(datasets.logging.set_verbosity, datasets.logging.get_verbosity())
    if not datasets.are_progress_bars_disabled():
        restored.callback(datasets.enable_progress_bars)
    # It notes every error that it raises, as another line.
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
