"""Distributed training: processes that torchrun starts, and factors that FSDP must shard apart.

Every process prepares and evaluates the same; only the main one writes and prints.
"""

import os
from typing import Any, cast

import torch
from accelerate import PartialState, utils
from torch import nn
from torch.distributed.fsdp import fully_shard

from rankfold.adapter.module import adapters_in
from rankfold.errors import SpecError
from rankfold.factors import Factor, Window


def join_processes(device: torch.device) -> None:
    """Initialise the process group and this process's device, if torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=device.type == "cpu")


def is_main_process() -> bool:
    """Whether this is the process that writes and prints."""
    return PartialState().is_main_process


def wait_for_all() -> None:
    """Wait until every process has called this."""
    PartialState().wait_for_everyone()


def same_everywhere(value: float) -> float:
    """Return the main process's value, such as a time, in every process."""
    if cast(Any, PartialState()).num_processes == 1:
        return value
    values = [value]
    cast(Any, utils).broadcast_object_list(values)
    return values[0]


def rows_per_process(batch_size: int) -> int:
    """Return the rows of an update that one process computes.

    Raises:
        SpecError: If the batch size is no multiple of the number of processes.
    """
    count: int = cast(Any, PartialState()).num_processes
    if batch_size % count:
        raise SpecError(
            f"batch_size {batch_size} cannot be split among {count} processes; give a multiple of {count}."
        )
    return batch_size // count


def shared_factors(model: nn.Module) -> list[nn.Module]:
    """Return the trainable factors that several layers share, each once.

    Sharding block by block must treat them apart: see `shard_shared_factors` for FSDP2, and pass them as
    `ignored_modules` to FSDP1.
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

    As part of the block of its owner it would be resharded before other blocks use it.

    Args:
        model: A model with adapters.
        **options: Options of `torch.distributed.fsdp.fully_shard`, such as `mesh`.
    """
    for factor in shared_factors(model):
        fully_shard(factor, **options, reshard_after_forward=False)


def _source(factor: Factor) -> Factor:
    return factor.source if isinstance(factor, Window) else factor
