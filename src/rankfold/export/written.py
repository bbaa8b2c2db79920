"""What an export wrote, read back: its layers, and the model that other programs make of it."""

from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import nn

from rankfold.adapter.layout import layers_in
from rankfold.errors import AdapterFileError, SpecError
from rankfold.export.base import Base
from rankfold.export.certificate import LLAMA_CPP, MERGED, Target
from rankfold.export.fold import Folded
from rankfold.export.gguf import FILE_NAME, GgufModel, gguf_model, read_gguf
from rankfold.export.merged import load_merged
from rankfold.export.opened import OpenedAdapter
from rankfold.export.plain_math import read_lora
from rankfold.progress import quiet_libraries
from rankfold.store.adapter import WEIGHTS_NAME


def written_layers(
    target: Target, folder: Path, saved: OpenedAdapter, base: Base | None
) -> dict[str, Folded]:
    """Return the layers in the files of a LoRA, of PEFT or of llama.cpp.

    Raises:
        AdapterFileError: If the files do not have them.
        SpecError: If llama.cpp's layout of the base model is not known.
    """
    geometries = layers_in(saved.config.layers or {})
    if target == LLAMA_CPP:
        return read_gguf(folder / FILE_NAME, model_of_llama_cpp(base), geometries)
    try:
        tensors = cast("Any", safetensors_torch).load_file(folder / WEIGHTS_NAME)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"'{folder / WEIGHTS_NAME}' cannot be read ({str(error).rstrip('.')}); export the adapter again."
        ) from error
    return read_lora(tensors, geometries)


def model_of_llama_cpp(base: Base | None) -> GgufModel:
    """Return what llama.cpp's layout of a base model depends on; its configuration is enough.

    Raises:
        SpecError: If there is no base model, or nothing is known of its type.
    """
    if base is None:
        raise SpecError(
            "llama.cpp's names and order of rows depend on the base model, which is not at hand; "
            "name it with --model."
        )
    config: Any = base.found.config()
    heads = getattr(config, "num_attention_heads", 1)
    return gguf_model(
        config.model_type,
        blocks=getattr(config, "num_hidden_layers", 1),
        heads=heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
    )


def model_with_result(target: Target, folder: Path, base: Base) -> nn.Module:
    """Return the base model with what was exported, as programs load it that do not know rankfold.

    Raises:
        SpecError: If the base model cannot be loaded for the adapter's task.
    """
    model = base.load()
    if target == MERGED:
        return load_merged(folder, model)
    with quiet_libraries():
        return cast("Any", PeftModel).from_pretrained(model, folder).eval()
