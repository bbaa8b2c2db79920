"""Batches whose rows have different adapters."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankfold.adapter.gating import ExpertEntryGating, ExpertExitGating

if TYPE_CHECKING:
    from rankfold.peft_plugin.layer import RankfoldLayer

BASE = "__base__"
"""In `adapter_names`, the name for rows that get no adapter."""


def forward_mixed(
    layer: "RankfoldLayer", x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any
) -> Tensor:
    """Return what a layer writes where each row has an adapter of its own, or none.

    Between the first and the last layer of an MLP, rows with experts have an axis in front, one entry for
    each expert of a token. All rows of the batch get it then; those without experts are in its first entry.

    Args:
        layer: The layer.
        x: Its input; the batch is the first axis, or the second within such an MLP.
        adapter_names: For each row its adapter, or `__base__`.
        *args: Passed to the base layer.
        **kwargs: Passed to the base layer.

    Raises:
        ValueError: If an adapter is merged, or there are not as many names as rows.
    """
    if layer.merged:
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    names = [name for name in dict.fromkeys(adapter_names) if name in layer.rankfold_adapters]
    gatings = {name: layer.rankfold_adapters[name].gating for name in names}
    entries = {name: each.places for name, each in gatings.items() if isinstance(each, ExpertEntryGating)}
    exits = {name: each for name, each in gatings.items() if isinstance(each, ExpertExitGating)}
    joined = x[0].clone() if exits else x
    if len(joined) != len(adapter_names):
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(adapter_names)} and {len(joined)} respectively."
        )
    rows = {name: _rows(adapter_names, name, x.device) for name in names}
    for name, gating in exits.items():
        joined[rows[name]] = gating.join(x[: gating.places, rows[name]])
    result = layer.base_layer(joined, *args, **kwargs)
    result = result.expand(max(entries.values()), *result.shape).clone() if entries else result.clone()
    for name in names:
        where = (slice(0, entries.get(name, len(result))), rows[name]) if entries else (rows[name],)
        source = x[: exits[name].places, rows[name]] if name in exits else joined[rows[name]]
        result[where] = (result[where] + layer.change(name, source)).to(result.dtype)
    return result


def _rows(adapter_names: list[str], name: str, device: torch.device) -> Tensor:
    return torch.tensor([row for row, of in enumerate(adapter_names) if of == name], device=device)
