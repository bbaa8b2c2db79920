"""Saving a model of diffusers: its `save_lora_adapter` writes our adapters as plain LoRA."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, final

from safetensors.torch import save_file
from torch import Tensor, nn

from rankfold.adapter.geometry import Conv2d, Geometry, Linear
from rankfold.errors import NotExactError, SpecError
from rankfold.peft_plugin.combine import check_sum, weighted_factors
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.layer import RankfoldLayer

_METHOD = "save_lora_adapter"
_WEIGHT_NAME, _METADATA_KEY = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"  # diffusers' own


def add_lora_saver(model: nn.Module) -> None:
    """Let a model of diffusers save our adapters by its own method; other models stay as they are."""
    if hasattr(type(model), _METHOD):
        setattr(model, _METHOD, LoraSaver(model))


def remove_lora_saver(model: nn.Module) -> None:
    """Give a model its own way of saving back."""
    vars(model).pop(_METHOD, None)


@final
class LoraSaver:
    """The `save_lora_adapter` of one model: folds our adapters, and leaves those of PEFT to diffusers.

    It is an object in the model, so copies and pickles of the model have one of their own.

    Args:
        model: The model, of diffusers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(  # the signature of diffusers
        self,
        save_directory: str | Path,
        adapter_name: str = "default",
        upcast_before_saving: bool = False,
        safe_serialization: bool = True,
        weight_name: str | None = None,
    ) -> None:
        """Save an adapter into a folder, for `load_lora_adapter(folder, prefix=None, use_safetensors=True)`.

        Args:
            save_directory: The folder, made if it is missing.
            adapter_name: Name of the adapter.
            upcast_before_saving: Write float32 numbers.
            safe_serialization: Write safetensors; our adapters are never written as a pickle.
            weight_name: Name of the file.

        Raises:
            NotExactError: If the gates of the adapter depend on the input, so that no LoRA equals it.
            SpecError: If it has modules of its own, is on parameters, or would be a pickle.
        """
        config = cast("dict[str, Any]", getattr(self.model, "peft_config", {})).get(adapter_name)
        if not isinstance(config, RankfoldConfig):
            save = getattr(type(self.model), _METHOD)
            save(
                self.model,
                save_directory,
                adapter_name,
                upcast_before_saving,
                safe_serialization,
                weight_name,
            )
            return
        if not safe_serialization:
            raise SpecError("adapters of rankfold are not saved as pickles; leave safe_serialization=True.")
        check_sum({adapter_name: config}, [1.0], [adapter_name])
        tensors, ranks = _lora_tensors(self.model, adapter_name)
        if upcast_before_saving:
            tensors = {key: tensor.float() for key, tensor in tensors.items()}
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt", _METADATA_KEY: json.dumps(_lora_config(ranks), indent=2, sort_keys=True)}
        save_file(tensors, folder / (weight_name or _WEIGHT_NAME), metadata=metadata)


def _lora_tensors(model: nn.Module, adapter_name: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the tensors of an adapter as plain LoRA without a scaling, and the rank of each layer."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, RankfoldLayer)}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, (down, up) in weighted_factors(layers, {adapter_name: 1.0}, "cat", None).items():
        ranks[name] = len(down)
        down, up = _kernels(name, layers[name].rankfold_adapters[adapter_name].geometry, down, up)
        tensors |= {f"{name}.lora_A.weight": down.contiguous(), f"{name}.lora_B.weight": up.contiguous()}
    return tensors, ranks


def _kernels(name: str, geometry: Geometry, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors in the shapes of the modules that PEFT's LoRA has on a layer of this type."""
    match geometry:
        case Linear():
            return down, up
        case Conv2d(groups=1, dilation=(1, 1), padding_mode="zeros"):
            return down.reshape(len(down), geometry.in_channels, *geometry.kernel_size), up[:, :, None, None]
        case _:
            raise NotExactError(
                f"cannot save '{name}' as plain LoRA of diffusers, which has none for layers of its type; "
                "leave the layer out of target_modules."
            )


def _lora_config(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return PEFT's configuration of a LoRA of these ranks whose scaling is 1 everywhere."""
    from peft import LoraConfig  # PEFT may be in the middle of its own import when this file is imported

    most = max(ranks.values())
    others = {f"^{name}": rank for name, rank in ranks.items() if rank != most}
    values = LoraConfig(
        r=most, lora_alpha=most, rank_pattern=others, alpha_pattern=others, target_modules=sorted(ranks)
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
