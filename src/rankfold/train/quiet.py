"""Keeping the libraries below from printing: rankfold reports progress and results itself."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import datasets
from datasets.utils import logging as datasets_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Silence the progress bars and notes of transformers and datasets, and restore them afterwards.

    What these libraries raise as Python warnings or exceptions still passes.
    """
    transformers_level = transformers_logging.get_verbosity()
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    datasets_level = datasets_logging.get_verbosity()
    datasets_bars = datasets.are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # It notes every error that it raises, as another line.
    datasets_logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # PEFT still reads the old name of a property; its users can do nothing about that.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(transformers_level)
        datasets_logging.set_verbosity(datasets_level)
        if transformers_bars:
            transformers_logging.enable_progress_bar()
        if not datasets_bars:
            datasets.enable_progress_bars()
