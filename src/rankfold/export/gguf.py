"""Plain LoRA as llama.cpp reads it: one GGUF file with its names of tensors and its order of rows.

The package `gguf` knows the names; it is imported when a file is written or read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from rankfold.adapter.geometry import Geometry, Linear
from rankfold.errors import AdapterFileError, NotExactError, SpecError, unknown_name
from rankfold.export.fold import Folded, read_product

FILE_NAME = "adapter.gguf"

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "phi3": "phi3",
}
"""llama.cpp's architecture by transformers' `model_type`, of those whose weights it keeps as they are, but
for the order of rows that `_PERMUTED` states."""

_PERMUTED = {"llama": ("q_proj", "k_proj")}
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@final
@dataclass(frozen=True, slots=True)
class GgufModel:
    """What llama.cpp's layout depends on.

    Args:
        architecture: llama.cpp's name of it.
        blocks: Number of blocks.
        heads: Attention heads.
        key_value_heads: Heads of keys and values.
    """

    architecture: str
    blocks: int
    heads: int
    key_value_heads: int

    def tensor_name(self, name: str) -> str:
        """Return llama.cpp's name of a layer's weight.

        Raises:
            NotExactError: If it has none.
        """
        gguf = _gguf()
        numbers: dict[str, int] = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(numbers[self.architecture], self.blocks)
        found: str | None = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if found is None:
            raise NotExactError(
                f"llama.cpp has no weight for '{name}' in the architecture '{self.architecture}'; merge the "
                "adapter into its base instead, with --to merged."
            )
        return found

    def rows(self, name: str, out_features: int) -> Tensor | None:
        """Return the order of a layer's rows in llama.cpp, None where it is the same.

        Its rotary embedding turns neighbouring pairs of a head, transformers' the two halves.
        """
        leaf = name.rpartition(".")[2]
        if leaf not in _PERMUTED.get(self.architecture, ()):
            return None
        heads = self.heads if leaf == "q_proj" else self.key_value_heads
        return torch.arange(out_features).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def gguf_model(model_type: str, *, blocks: int, heads: int, key_value_heads: int) -> GgufModel:
    """Return what llama.cpp's layout of a model depends on.

    Raises:
        SpecError: If this is not known of the model's type.
    """
    if model_type not in ARCHITECTURES:
        raise unknown_name("model type of llama.cpp", model_type, ARCHITECTURES)
    return GgufModel(ARCHITECTURES[model_type], blocks, heads, key_value_heads)


def write_gguf(layers: Mapping[str, Folded], model: GgufModel, path: Path, dtype: torch.dtype) -> None:
    """Write folded layers as a LoRA for llama.cpp.

    Raises:
        NotExactError: If llama.cpp has no place for a layer, or a number is not finite in the dtype.
        SpecError: If the package `gguf` is not installed.
    """
    gguf = _gguf()
    ranks = {folded.rank for folded in layers.values()}
    writer = gguf.GGUFWriter(str(path), model.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp divides by the rank of each layer, so alpha is that rank; 0 means no scaling at all.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(ranks.pop()) if len(ranks) == 1 else 0.0)
    kind = gguf.GGMLQuantizationType[_TYPES[dtype]]
    for name, folded in layers.items():
        for suffix, matrix in _matrices(name, folded.stored(name, dtype), model).items():
            values = gguf.quants.quantize(matrix.float().numpy(), kind)
            writer.add_tensor(f"{model.tensor_name(name)}.{suffix}", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, model: GgufModel, geometries: Mapping[str, Geometry]) -> dict[str, Folded]:
    """Return the layers of a file that `write_gguf` wrote, by their names in transformers.

    Raises:
        AdapterFileError: If the file lacks a layer, or cannot be read.
        SpecError: If the package `gguf` is not installed.
    """
    gguf = _gguf()
    try:
        tensors = {each.name: each for each in gguf.GGUFReader(str(path)).tensors}
        layers: dict[str, Folded] = {}
        for name, geometry in geometries.items():
            down, up = (
                cast("Any", torch).from_numpy(gguf.quants.dequantize(found.data, found.tensor_type).copy())
                for suffix in ("lora_a", "lora_b")
                for found in [tensors[f"{model.tensor_name(name)}.{suffix}"]]
            )
            rows = model.rows(name, geometry.out_features)
            up = up if rows is None else up[rows.argsort()]
            layers[name] = read_product(name, down, up, geometry)
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise AdapterFileError(
            f"'{path}' lacks layers of the adapter or is damaged ({error}); export the adapter again."
        ) from error
    return layers


def _matrices(name: str, folded: Folded, model: GgufModel) -> dict[str, Tensor]:
    if not isinstance(folded.geometry, Linear):
        raise NotExactError(
            f"llama.cpp's LoRA is for linear layers, which '{name}' is not; merge the adapter into its base "
            "instead, with --to merged."
        )
    rows = model.rows(name, folded.up.shape[0])
    return {"lora_a": folded.down, "lora_b": folded.up if rows is None else folded.up[rows]}


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise SpecError(
            "writing for llama.cpp takes the package 'gguf'; install it with `pip install 'rankfold[gguf]'`."
        ) from error
    return gguf
