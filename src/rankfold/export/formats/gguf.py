"""Plain LoRA for llama.cpp: one GGUF file with its names of tensors and its order of rows.

The package `gguf` knows the names; it is imported when a file is written or read.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from rankfold.adapter.geometry import Geometry, Linear, Matrices
from rankfold.errors import AdapterFileError, DiskError, NotExactError, SpecError, unknown_name
from rankfold.export.base import AdapterBase
from rankfold.export.fold import LowRankUpdate, check_update
from rankfold.export.formats import LayerFormat
from rankfold.export.layers import PREFIX, FoldedAdapter

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
for the order of rows that `_REORDERED_LAYERS` states."""

_REORDERED_LAYERS = {"llama": ("q_proj", "k_proj")}
_TENSOR_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@final
class GgufLora(LayerFormat):
    """One file for llama.cpp, which needs the configuration of the base model but not its weights."""

    name = "gguf"
    logits_skipped = "llama.cpp, which reads the file, was not run."

    def write_adapter(
        self, adapter: FoldedAdapter, base: AdapterBase | None, folder: Path, dtype: torch.dtype
    ) -> None:
        """Write an adapter's updates as a LoRA for llama.cpp.

        Raises:
            NotExactError: If llama.cpp cannot hold a layer or a tensor beside them, or the dtype a value.
            SpecError: If the base model is not at hand or of an unknown type, or `gguf` is not installed.
        """
        if adapter.tensors:
            name = min(adapter.tensors).removeprefix(PREFIX)
            raise NotExactError(
                f"llama.cpp's LoRA cannot hold '{name}', which was trained in full; export --to merged, and "
                "convert the model."
            )
        for name, update in adapter.updates.items():
            if isinstance(update.geometry, Matrices):
                raise NotExactError(
                    f"llama.cpp's LoRA is not written for '{name}', which is a parameter and no layer; merge "
                    "the adapter into its base instead, with --to merged, and convert the model."
                )
        write_gguf(adapter.updates, _layout_of(base), folder / FILE_NAME, dtype)

    def read_updates(
        self, geometries: Mapping[str, Geometry], base: AdapterBase | None, folder: Path
    ) -> Mapping[str, LowRankUpdate]:
        """Return the updates in the file, by their names in transformers.

        Raises:
            AdapterFileError: If the file lacks a layer, or cannot be read.
            SpecError: If the base model is not at hand or of an unknown type, or `gguf` is not installed.
        """
        return read_gguf(folder / FILE_NAME, _layout_of(base), geometries)

    def load(self, base: AdapterBase, folder: Path) -> nn.Module:
        """Raise: only llama.cpp reads the file.

        Raises:
            SpecError: Always.
        """
        raise SpecError(f"'{folder}' is for llama.cpp; export --to lora to load the adapter in Python.")


FORMAT = GgufLora()


@final
@dataclass(frozen=True, slots=True)
class GgufLayout:
    """Names and order of rows of a model's tensors in llama.cpp.

    Args:
        architecture: llama.cpp's name of the architecture.
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
        names = _tensor_names(self.architecture, self.blocks)
        gguf_name: str | None = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if gguf_name is None:
            raise NotExactError(
                f"llama.cpp has no weight for '{name}' in the architecture '{self.architecture}'; merge the "
                "adapter into its base instead, with --to merged."
            )
        return gguf_name

    def rows(self, name: str, out_features: int) -> Tensor | None:
        """Return the order of a layer's rows in llama.cpp, None where it is the same.

        Its rotary embedding turns neighbouring pairs of a head, transformers' the two halves.
        """
        leaf = name.rpartition(".")[2]
        if leaf not in _REORDERED_LAYERS.get(self.architecture, ()):
            return None
        heads = self.heads if leaf == "q_proj" else self.key_value_heads
        return torch.arange(out_features).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def gguf_layout(model_type: str, *, blocks: int, heads: int, key_value_heads: int) -> GgufLayout:
    """Return llama.cpp's layout of a model, from its type and sizes in transformers.

    Raises:
        SpecError: If the layout of this type is not known.
    """
    if model_type not in ARCHITECTURES:
        raise unknown_name("model type of llama.cpp", model_type, ARCHITECTURES)
    return GgufLayout(ARCHITECTURES[model_type], blocks, heads, key_value_heads)


def _layout_of(base: AdapterBase | None) -> GgufLayout:
    if base is None:
        raise SpecError(
            "llama.cpp's names and order of rows depend on the base model, which is not at hand; "
            "name it with --model."
        )
    config: Any = base.model.config()
    heads = getattr(config, "num_attention_heads", 1)
    return gguf_layout(
        config.model_type,
        blocks=getattr(config, "num_hidden_layers", 1),
        heads=heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
    )


@cache
def _tensor_names(architecture: str, blocks: int) -> Any:
    """Return the map of tensor names of the package `gguf`, which takes 10 ms to build."""
    gguf = _gguf()
    numbers: dict[str, int] = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[architecture], blocks)


def write_gguf(
    updates: Mapping[str, LowRankUpdate], layout: GgufLayout, path: Path, dtype: torch.dtype
) -> None:
    """Write folded layers as a LoRA for llama.cpp.

    Raises:
        NotExactError: If llama.cpp has no such layer, or a value is not finite in the dtype.
        SpecError: If the package `gguf` is not installed.
    """
    gguf = _gguf()
    ranks = {update.rank for update in updates.values()}
    writer = gguf.GGUFWriter(str(path), layout.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp divides by the rank of each layer, so alpha is that rank; 0 means no scaling at all.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(ranks.pop()) if len(ranks) == 1 else 0.0)
    tensor_type = gguf.GGMLQuantizationType[_TENSOR_TYPES[dtype]]
    for name, update in updates.items():
        for suffix, matrix in _matrices(name, update.to_finite(name, dtype), layout).items():
            values = gguf.quants.quantize(matrix.float().numpy(), tensor_type)
            writer.add_tensor(f"{layout.tensor_name(name)}.{suffix}", values, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check_whole(path)


def _check_whole(path: Path) -> None:
    """Check that all of a file is on the disk: the package does not notice when it is cut off.

    Raises:
        DiskError: If it is not.
    """
    try:
        _gguf().GGUFReader(str(path))
    except (ValueError, IndexError, KeyError) as error:
        raise DiskError(
            f"cannot write '{path}' ({os.strerror(errno.ENOSPC)}); make room on its disk."
        ) from error


def read_gguf(path: Path, layout: GgufLayout, geometries: Mapping[str, Geometry]) -> dict[str, LowRankUpdate]:
    """Return the layers of a file that `write_gguf` wrote, by their names in transformers.

    Raises:
        AdapterFileError: If the file lacks a layer, or cannot be read.
        SpecError: If the package `gguf` is not installed.
    """
    gguf = _gguf()

    def values(tensor: Any) -> Tensor:
        return cast("Any", torch).from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())

    try:
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
        updates: dict[str, LowRankUpdate] = {}
        for name, geometry in geometries.items():
            gguf_name = layout.tensor_name(name)
            down, up = values(tensors[f"{gguf_name}.lora_a"]), values(tensors[f"{gguf_name}.lora_b"])
            rows = layout.rows(name, geometry.out_features)
            updates[name] = check_update(name, down, up if rows is None else up[rows.argsort()], geometry)
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise AdapterFileError(
            f"'{path}' lacks layers of the adapter or is damaged ({error}); export the adapter again."
        ) from error
    return updates


def _matrices(name: str, update: LowRankUpdate, layout: GgufLayout) -> dict[str, Tensor]:
    if not isinstance(update.geometry, Linear):
        raise NotExactError(
            f"llama.cpp's LoRA is for linear layers, which '{name}' is not; merge the adapter into its base "
            "instead, with --to merged."
        )
    rows = layout.rows(name, update.up.shape[0])
    return {"lora_a": update.down, "lora_b": update.up if rows is None else update.up[rows]}


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise SpecError(
            "writing for llama.cpp needs the package 'gguf'; install it with `pip install 'rankfold[gguf]'`."
        ) from error
    return gguf
