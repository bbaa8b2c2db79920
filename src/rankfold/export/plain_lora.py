"""A folder that every reader of PEFT's LoRA takes: folded from a configuration and its tensors."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import TaskType
from safetensors import torch as safetensors_torch
from torch import Tensor

from rankfold.adapter.layout import layers_in
from rankfold.export.detached import MARKER, detached_adapters
from rankfold.export.fold import Folded, fold
from rankfold.export.plain_math import Belongings, lora_config, lora_tensors
from rankfold.export.verdict import exact_rank
from rankfold.files import write_whole
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME


def write_plain_lora(
    config: RankfoldConfig,
    state: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    base_weight: Callable[[str], Tensor] | None = None,
) -> dict[str, Folded]:
    """Write an adapter as a plain LoRA that PEFT, vLLM and others load without rankfold.

    Args:
        config: A configuration that was saved, with its layers.
        state: The tensors that were saved with it, by the names of PEFT's files.
        folder: An existing folder; its adapter_config.json and adapter_model.safetensors are written.
        dtype: That of the tensors.
        base_weight: Returns the base weight of a layer by its name; only for factors that are taken from it.

    Returns:
        The folded layers by name, in float64.

    Raises:
        NotExactError: If no plain LoRA equals the adapter; nothing is written then.
        AdapterFileError: If configuration and tensors do not belong together, or the configuration has no
            list of layers.
    """
    check_exact(config)
    layers = {name: fold(each) for name, each in detached_adapters(config, state, base_weight).items()}
    write_lora(layers, belongings(config, state), folder, dtype)
    return layers


def check_exact(config: RankfoldConfig) -> None:
    """Check that adapters of a configuration equal a plain LoRA, from the configuration alone.

    Raises:
        NotExactError: If a router weighs their heads.
        AdapterFileError: If the list of their layers is damaged.
    """
    for name in layers_in(config.layers or {}) or ("this adapter",):
        exact_rank(name, config.spec_for(name))


def belongings(config: RankfoldConfig, state: Mapping[str, Tensor]) -> Belongings:
    """Return what a saved adapter has beside the adapters of its layers."""
    return Belongings(
        base_model=config.base_model_name_or_path,
        task_type=None if config.task_type is None else TaskType(config.task_type).value,
        # PEFT lists the head of a classifier once more each time it saves.
        modules_to_save=tuple(dict.fromkeys(config.modules_to_save or ())),
        tensors={key: tensor for key, tensor in state.items() if MARKER not in key},
    )


def write_lora(layers: Mapping[str, Folded], beside: Belongings, folder: Path, dtype: torch.dtype) -> None:
    """Write folded layers, and what they had beside them, as a plain LoRA.

    Raises:
        NotExactError: If PEFT's LoRA computes something else on a layer of this kind.
    """
    rest = {key: tensor.contiguous() for key, tensor in beside.tensors.items()}
    tensors = lora_tensors(layers, dtype) | rest
    # The metadata is what PEFT writes, and some readers ask for it.
    content = cast("Any", safetensors_torch).save(tensors, metadata={"format": "pt"})
    text = json.dumps(lora_config(layers, beside), indent=2, sort_keys=True)
    write_whole(folder / WEIGHTS_NAME, content)
    write_whole(folder / CONFIG_NAME, text.encode())
