"""Updates of saved adapters of any PEFT method, layer by layer, as products of two thin matrices."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from rankfold.adapter.geometry import Embedding, Geometry, Linear
from rankfold.errors import AdapterFileError, NotExactError, SpecError
from rankfold.export.base import AdapterBase, RankfoldAdapter, find_base
from rankfold.export.fold import LowRankUpdate
from rankfold.export.layers import PREFIX, ExportSource, with_layers
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.store.adapter import SavedAdapter
from rankfold.store.loading import load_adapter, peft_config
from rankfold.store.saved import open_adapter

_LINALG: Any = torch.linalg  # torch leaves its functions untyped

_AXES = 2
_SMALLEST = 1e-7
"""Singular values below this share of the largest are rounding."""


@final
@dataclass(frozen=True, slots=True)
class Updates:
    """The updates of a saved adapter of any PEFT method.

    Args:
        saved: The adapter.
        config: Its configuration.
        layers: The update of each layer by name, in float64.
        base: Its base model, if it is at hand.
    """

    saved: SavedAdapter
    config: PeftConfig
    layers: Mapping[str, LowRankUpdate]
    base: AdapterBase | None


def read_updates(location: str | Path, model: str | None = None) -> Updates:
    """Return the updates of a saved adapter, exactly.

    Args:
        location: As for `open_adapter`.
        model: The base model, for methods of PEFT other than LoRA; that of its configuration if None.

    Raises:
        NotExactError: If the adapter equals no change of its base's weights.
        AdapterFileError: If it is damaged, or does not fit its base model.
        SpecError: If its base model is needed and not at hand.
    """
    saved = open_adapter(location)
    saved.check_finite()
    config = peft_config(saved)
    adapter = RankfoldAdapter(saved, config if isinstance(config, RankfoldConfig) else _stand_in(config))
    base = find_base(adapter, model)
    if isinstance(config, RankfoldConfig):
        source = ExportSource(with_layers(adapter, base), base, None, "no texts are compared")
        layers = source.fold().updates
    elif isinstance(config, LoraConfig) and _is_plain(config):
        layers = _lora_updates(config, saved.tensors)
    else:
        if base is None:
            raise SpecError(
                f"{saved.title} is of PEFT's method {saved.method}, whose updates take its base model; name "
                "it with --model."
            )
        layers = _updates_in(load_adapter(base.load(), saved))
    if not layers:
        raise NotExactError(f"{saved.title} changes no layer that a basis can have; leave it out.")
    return Updates(saved, config, layers, base)


def _stand_in(config: PeftConfig) -> RankfoldConfig:
    """Return a configuration that finds and loads the base model of an adapter of another method."""
    return RankfoldConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        auto_mapping=config.auto_mapping,  # pyright: ignore[reportUnknownMemberType] (PEFT's)
    )


def _is_plain(config: LoraConfig) -> bool:
    """Whether a LoRA is the product of its two matrices and no more."""
    options = ("use_dora", "target_parameters", "trainable_token_indices", "lora_bias")
    return config.bias == "none" and not any(getattr(config, option, None) for option in options)


def _lora_updates(config: LoraConfig, tensors: Mapping[str, Tensor]) -> dict[str, LowRankUpdate]:
    """Return the updates of PEFT's LoRA from its tensors alone."""
    updates: dict[str, LowRankUpdate] = {}
    alphas = cast("dict[str, float]", config.alpha_pattern or {})  # pyright: ignore[reportUnknownMemberType] (PEFT's)
    pairs = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
    for a, b in pairs.items():
        for key in (key for key in tensors if key.endswith(a)):
            name, down, up = (
                key.removeprefix(PREFIX).removesuffix(a),
                tensors[key],
                tensors.get(key.removesuffix(a) + b),
            )
            if up is None:
                raise AdapterFileError(f"the adapter's file lacks the up factor of '{name}'; copy it again.")
            if down.ndim != _AXES:
                raise NotExactError(
                    f"'{name}' is a convolution of PEFT's LoRA, which a basis is not learned from; leave the "
                    "adapter out."
                )
            rank = len(down)
            alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
            scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
            updates[name] = LowRankUpdate(down.double(), up.double() * scale, _geometry(config, a, down, up))
    return updates


def _geometry(config: LoraConfig, suffix: str, down: Tensor, up: Tensor) -> Geometry:
    if "embedding" in suffix:
        return Embedding(down.shape[1], len(up))
    return Linear(down.shape[1], len(up), transposed=config.fan_in_fan_out)


@torch.no_grad()
def _updates_in(model: nn.Module) -> dict[str, LowRankUpdate]:
    """Return the updates of an adapter of any PEFT method on its base model, by singular value decomposition.

    Raises:
        NotExactError: If the method has no update of a weight for one of its layers.
    """
    updates: dict[str, LowRankUpdate] = {}
    layers: dict[str, Any] = {
        path.removeprefix(PREFIX): module
        for path, module in cast(Any, model).named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    for name, module in layers.items():
        delta: Callable[[str], Tensor] | None = getattr(module, "get_delta_weight", None)
        weight = getattr(module.get_base_layer(), "weight", None)
        if delta is None or not isinstance(weight, Tensor) or weight.ndim != _AXES:
            raise NotExactError(
                f"'{name}' has no update of a weight by this method of PEFT; leave the adapter out."
            )
        transposed = bool(getattr(module, "fan_in_fan_out", False))
        matrix = delta("default").double()
        matrix = matrix.T if transposed else matrix
        parts: tuple[Tensor, Tensor, Tensor] = _LINALG.svd(matrix, full_matrices=False)
        left, values, right = parts
        count = max(1, int((values > values[0] * _SMALLEST).sum()))
        geometry = Linear(matrix.shape[1], len(matrix), transposed=transposed)
        updates[name] = LowRankUpdate(right[:count], left[:, :count] * values[:count], geometry)
    return updates
