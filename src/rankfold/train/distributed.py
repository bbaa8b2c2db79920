"""Several processes that train one model together: torchrun starts them, accelerate joins them.

Every process prepares and measures the same; only the main one writes and speaks.
"""

import os
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.fsdp import fully_shard

from rankfold.adapter.module import adapters_in
from rankfold.errors import SpecError
from rankfold.factors import Factor, Window


def join_processes(device: torch.device) -> None:
    """Join the other processes, if this is one of several, and take this process's own device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=device.type == "cpu")


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
    count: int = cast(Any, PartialState()).num_processes
    if batch_size % count:
        raise SpecError(
            f"batch_size {batch_size} cannot be dealt out to {count} processes; give a multiple of {count}."
        )
    return batch_size // count


def shared_factors(model: nn.Module) -> list[nn.Module]:
    """Return the trained factors that several layers use, each once.

    Sharding block by block must treat them apart: see `shard_shared_factors` for FSDP2, and `ignored_modules`
    for FSDP1.
    """
    uses: dict[nn.Module, int] = {}
    for _, _, adapter in adapters_in(model):
        for factor in (adapter.down, adapter.core, adapter.up):
            if factor is not None and not factor.is_frozen:
                source = _source(factor)
                uses[source] = uses.get(source, 0) + 1
    return [factor for factor, count in uses.items() if count > 1]


def shard_shared_factors(model: nn.Module, **options: Any) -> None:
    """Make each shared factor an FSDP2 unit of its own; call it before `fully_shard` on blocks and model.

    A factor that belonged to the block of its owner would be sharded away again when other blocks need it.

    Args:
        model: A model with adapters.
        **options: Those of `torch.distributed.fsdp.fully_shard`, such as `mesh`.
    """
    for factor in shared_factors(model):
        fully_shard(factor, **options, reshard_after_forward=False)


def _source(factor: Factor) -> Factor:
    return factor.source if isinstance(factor, Window) else factor
