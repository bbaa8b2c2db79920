"""A model with the adapter in its weights, as a folder that transformers loads without PEFT."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankfold.adapter.module import hosts_in
from rankfold.errors import NotExactError, SpecError
from rankfold.export.base import Base
from rankfold.export.certificate import LayerPart
from rankfold.export.fold import fold
from rankfold.export.measure import frobenius
from rankfold.export.plain_math import PREFIX
from rankfold.models.base import BaseModel
from rankfold.peft_plugin.layer import RankfoldLayer
from rankfold.progress import quiet_libraries


def base_dtype(base: BaseModel) -> torch.dtype:
    """Return the dtype that a base model's weights are stored in.

    Raises:
        SpecError: If they are quantised, so that merged weights could not be stored like them.
    """
    if base.origin.is_file():
        return torch.float32  # a GGUF file, widened when it was read
    config = base.config()
    if getattr(config, "quantization_config", None) is not None:
        raise SpecError(
            f"the base model '{base.name}' is quantised, which merged weights would not survive; name its "
            "float original with --model, or export --to lora."
        )
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def write_merged(base: Base, folder: Path, dtype: torch.dtype) -> tuple[LayerPart, ...]:
    """Merge an adapter into its base model in float32 and write the model, with head and tokenizer.

    Returns:
        For each layer what rounding the merged weights takes from the adapter's change, relative to it.

    Raises:
        NotExactError: If a router weighs the heads, a merged weight is not finite, or modules that read one
            weight would need different ones.
        AdapterFileError: If the adapter does not fit the model.
        SpecError: If the model cannot be loaded for the adapter's task.
    """
    model = base.adapted()
    parts = tuple(drifts(model, dtype))
    spoilt = [part.name for part in parts if not math.isfinite(part.written)]
    if spoilt:
        raise NotExactError(
            f"the merged weight of '{spoilt[0]}' is not finite in {str(dtype).removeprefix('torch.')}; merge "
            "in another dtype, or, if the adapter is not finite either, train it again."
        )
    read = {module: dict(module.named_parameters(recurse=False)) for module in model.modules()}
    with quiet_libraries():
        merged: Any = cast("Any", model).merge_and_unload()
        _check_ties(merged, read)
        merged.to(dtype).save_pretrained(folder)
        if (tokenizer := base.tokenizer()) is not None:
            cast("Any", tokenizer).save_pretrained(folder)
    return parts


def _check_ties(merged: nn.Module, read: Mapping[nn.Module, Mapping[str, nn.Parameter]]) -> None:
    """Check that weights which were one before merging are equal: files and other programs hold one.

    Args:
        merged: The merged model.
        read: What its modules read before.
    """
    first: dict[nn.Parameter, tuple[str, Tensor]] = {}
    named = cast("Iterator[tuple[str, nn.Module]]", merged.named_modules())
    for name, module in named:
        for key, before in read.get(module, {}).items():
            weight = module.get_parameter(key)
            other, its_weight = first.setdefault(before, (name, weight))
            if weight is not its_weight and not torch.equal(weight, its_weight):
                raise NotExactError(
                    f"'{other}' and '{name}' read one weight, and the adapter does not change it alike for "
                    "both; export --to lora, or name a copy of the base with untied weights by --model."
                )


def load_merged(folder: Path, like: nn.Module) -> nn.Module:
    """Return a merged model in float32, of the class of another one."""
    with quiet_libraries():
        return cast("Any", type(like)).from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def drifts(model: nn.Module, dtype: torch.dtype) -> Iterator[LayerPart]:
    """Yield for each layer what rounding the merged weights takes from an adapter's change, relative to it.

    Args:
        model: A model in float32 with one adapter.
        dtype: That of the merged weights.
    """
    for path, layer in hosts_in(model):
        assert isinstance(layer, RankfoldLayer), "the layers of a PEFT model are ours"
        for adapter in layer.rankfold_adapters.values():
            change, weight = adapter.delta_weight(), layer.get_base_weight().double()
            error = _drift(weight, change)
            yield LayerPart(
                path.removeprefix(PREFIX),
                fold(adapter).rank,
                error(torch.float32),
                error(dtype),
            )


def _drift(weight: Tensor, change: Tensor) -> Callable[[torch.dtype], float]:
    """Return what tells how much of a change is lost where the changed weight is rounded to a dtype."""
    exact, size = weight + change.double(), frobenius(change.double())

    def error(dtype: torch.dtype) -> float:
        lost = (weight.float() + change.float()).to(dtype).double() - exact
        return 0.0 if size == 0 else frobenius(lost) / size

    return error
