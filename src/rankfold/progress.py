"""Progress reporting of long work; the command line draws it as a bar."""

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, final, runtime_checkable

SECONDS_LEFT = "seconds_left"
"""Field of `Progress.advance` with the seconds left, where work has a better estimate than its pace."""


@runtime_checkable
class Progress(Protocol):
    """Receives the progress of one piece of work at a time."""

    def start(self, total: int, description: str) -> None:
        """Begin work of `total` units."""
        ...

    def advance(self, done: int, **fields: object) -> None:
        """Report that `done` units are finished, with fields to show beside the bar (loss, accuracy)."""
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
    """Silence the progress bars and log messages of transformers and datasets within a `with` block.

    Python warnings and exceptions of these libraries still pass.
    """
    with ExitStack() as cleanup, warnings.catch_warnings():
        _silence_transformers(cleanup)
        # It is of the extra `bench`; where nothing has imported it, it prints nothing.
        if (datasets := sys.modules.get("datasets")) is not None:
            _silence_datasets(datasets, cleanup)
        # PEFT still reads the old name of a property; its users can do nothing about that.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def _silence_transformers(cleanup: ExitStack) -> None:
    # Imported late: reading records must not wait for it.
    from transformers.utils import logging as transformers_logging

    cleanup.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
    if transformers_logging.is_progress_bar_enabled():
        cleanup.callback(transformers_logging.enable_progress_bar)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _silence_datasets(datasets: Any, cleanup: ExitStack) -> None:
    cleanup.callback(datasets.logging.set_verbosity, datasets.logging.get_verbosity())
    if not datasets.are_progress_bars_disabled():
        cleanup.callback(datasets.enable_progress_bars)
    # It also logs every error that it raises.
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
