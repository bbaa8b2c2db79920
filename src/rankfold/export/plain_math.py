"""Plain LoRA as PEFT stores it: names, shapes and the few words of configuration that every reader knows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from rankfold.adapter.geometry import Conv2d, Embedding, Geometry, Linear
from rankfold.errors import AdapterFileError, NotExactError
from rankfold.export.fold import Folded, read_product

PREFIX = "base_model.model."
"""What PEFT puts before the name of every layer in a file."""


@final
@dataclass(frozen=True, slots=True)
class Belongings:
    """What an adapter's file has beside the adapters of its layers.

    Args:
        base_model: Name or folder of the base model, if it is known.
        task_type: What the model is for, in PEFT's word.
        modules_to_save: Modules that were trained as a whole.
        tensors: Their tensors, by the names they have in the file.
    """

    base_model: str | None
    task_type: str | None
    modules_to_save: Sequence[str]
    tensors: Mapping[str, Tensor]


def lora_tensors(layers: Mapping[str, Folded], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of folded layers by their names in a file.

    Raises:
        NotExactError: If PEFT's LoRA computes something else on a layer of this kind, or a number is not
            finite in the dtype.
    """
    tensors: dict[str, Tensor] = {}
    for name, folded in layers.items():
        down, up = (matrix.contiguous() for matrix in _matrices(name, folded.stored(name, dtype)))
        infix, suffix = ("embedding_", "") if isinstance(folded.geometry, Embedding) else ("", ".weight")
        tensors[f"{PREFIX}{name}.lora_{infix}A{suffix}"] = down
        tensors[f"{PREFIX}{name}.lora_{infix}B{suffix}"] = up
    return tensors


def lora_config(layers: Mapping[str, Folded], belongings: Belongings) -> dict[str, Any]:
    """Return PEFT's configuration of folded layers, whose scaling is already in their matrices.

    `r` is the largest rank, since servers reserve room by it; layers of another rank are in `rank_pattern`,
    and again in `alpha_pattern`, so that every scaling is 1. `target_modules` is a pattern where the name of
    a layer may be the end of another's.
    """
    ranks = {name: written_rank(folded) for name, folded in layers.items()}
    largest = max(ranks.values())
    pattern = {_pattern(name, ranks): rank for name, rank in ranks.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": belongings.task_type,
        "base_model_name_or_path": belongings.base_model,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(_is_transposed(folded) for folded in layers.values()),
        "target_modules": _targets(sorted(layers)),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "modules_to_save": list(belongings.modules_to_save) or None,
        "use_rslora": False,
        "use_dora": False,
    }


def _matrices(name: str, folded: Folded) -> tuple[Tensor, Tensor]:
    """Return the two matrices of a layer in the shapes of PEFT's modules."""
    match folded.geometry:
        case Conv2d() as convolution:
            return _kernels(name, folded, convolution)
        case _:
            # The same for a Conv1D: PEFT holds its two modules as linear ones, whichever way the base lies.
            return folded.down, folded.up


def _kernels(name: str, folded: Folded, convolution: Conv2d) -> tuple[Tensor, Tensor]:
    """Return a convolution's matrices as kernels.

    PEFT's first kernel reads all channels at once, its second one only those of its group. So down is laid
    out once for each group, on that group's channels, with zeros on the others.
    """
    if convolution.dilation != (1, 1) or convolution.padding_mode != "zeros":
        what = "dilation" if convolution.dilation != (1, 1) else f"'{convolution.padding_mode}' padding"
        raise NotExactError(
            f"cannot write '{name}' as plain LoRA: PEFT's LoRA leaves out the {what} of the convolution; "
            "merge the adapter into its base instead, with --to merged."
        )
    groups, channels = convolution.groups, convolution.in_channels // convolution.groups
    kernel = folded.down.reshape(folded.rank, channels, *convolution.kernel_size)
    down = kernel.new_zeros(groups * folded.rank, convolution.in_channels, *convolution.kernel_size)
    for group in range(groups):
        rows = slice(group * folded.rank, (group + 1) * folded.rank)
        down[rows, group * channels : (group + 1) * channels] = kernel
    return down, folded.up[:, :, None, None]


def written_rank(folded: Folded) -> int:
    """Return the rank of a layer in a file of PEFT's LoRA, where each group of a convolution has its own."""
    groups = folded.geometry.groups if isinstance(folded.geometry, Conv2d) else 1
    return folded.rank * groups


def _targets(names: Sequence[str]) -> list[str] | str:
    """Return what PEFT finds these layers by, and no others.

    A name in a list also stands for every module whose name ends with it. No block of a model lies inside
    another one under its whole name, but a name without a dot may end others: then one pattern has all names.
    """
    if all("." in name for name in names):
        return list(names)
    return "|".join(map(re.escape, names))


def _pattern(name: str, names: Mapping[str, Any]) -> str:
    """Return what matches a name in PEFT's patterns, which also match names that end alike."""
    return f"^{name}" if any(other.endswith(f".{name}") for other in names) else name


def _is_transposed(folded: Folded) -> bool:
    return isinstance(folded.geometry, Linear) and folded.geometry.transposed


def read_lora(tensors: Mapping[str, Tensor], geometries: Mapping[str, Geometry]) -> dict[str, Folded]:
    """Return the layers of a file that was written from `lora_tensors`, with their scaling.

    Raises:
        AdapterFileError: If the file lacks a layer, or its tensors have other shapes.
    """
    layers: dict[str, Folded] = {}
    for name, geometry in geometries.items():
        infix, suffix = ("embedding_", "") if isinstance(geometry, Embedding) else ("", ".weight")
        try:
            down, up = (tensors[f"{PREFIX}{name}.lora_{infix}{side}{suffix}"] for side in "AB")
        except KeyError as error:
            raise AdapterFileError(f"the file lacks '{name}'; export the adapter again.") from error
        if isinstance(geometry, Conv2d):
            rank, channels = up.shape[1], geometry.in_channels // geometry.groups
            down, up = down[:rank, :channels].flatten(1), up.flatten(1)
        layers[name] = read_product(name, down, up, geometry)
    return layers
