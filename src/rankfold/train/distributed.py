"""Several processes that train one model together: torchrun starts them, accelerate joins them.

Every process prepares and measures the same; only the main one writes and speaks.
"""

import os
from typing import Any, cast

import torch
from accelerate import PartialState

from rankfold.errors import SpecError


def join_processes(device: torch.device) -> None:
    """Join the other processes, if this is one of several, and take this process's own device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=device.type == "cpu")


def process_count() -> int:
    """Return how many processes train together; 1 unless they have been joined."""
    return cast(int, cast(Any, PartialState()).num_processes)


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return PartialState().is_main_process


def wait_for_all() -> None:
    """Wait until every process has come here."""
    PartialState().wait_for_everyone()


def rows_of_a_process(batch_size: int) -> int:
    """Return how many rows of an update one process takes.

    Raises:
        SpecError: If they cannot be dealt out evenly.
    """
    count = process_count()
    if batch_size % count:
        raise SpecError(
            f"batch_size {batch_size} cannot be dealt out to {count} processes; give a multiple of {count}."
        )
    return batch_size // count
