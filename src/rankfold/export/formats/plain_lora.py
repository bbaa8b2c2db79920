"""PEFT's plain LoRA: a folder that PEFT, vLLM, TGI and every other reader of LoRA takes."""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from rankfold.adapter.geometry import Conv2d, Embedding, Geometry, Linear, Matrices
from rankfold.errors import AdapterFileError, NotExactError, RankfoldWarning
from rankfold.export.base import AdapterBase
from rankfold.export.denoising import DENOISERS
from rankfold.export.fold import LowRankUpdate, check_update
from rankfold.export.formats import LayerFormat
from rankfold.export.layers import PREFIX, FoldedAdapter, fold_tensors
from rankfold.files import write_whole
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.progress import quiet_libraries
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME


@final
class PlainLora(LayerFormat):
    """A folder with PEFT's `adapter_config.json` and `adapter_model.safetensors`."""

    name = "lora"

    def write_adapter(
        self, adapter: FoldedAdapter, base: AdapterBase | None, folder: Path, dtype: torch.dtype
    ) -> None:
        """Write an adapter's updates, and the tensors beside them, as PEFT's LoRA.

        Raises:
            NotExactError: If PEFT's LoRA computes something else on a layer of this type, or the dtype cannot
                hold a value.
        """
        if adapter.component in DENOISERS:
            warnings.warn(
                f"PEFT reads this LoRA of a {adapter.component}, but pipelines of diffusers do not: "
                "export --to diffusers for load_lora_weights, or --to kohya for ComfyUI and A1111.",
                RankfoldWarning,
                stacklevel=2,
            )
        write_lora(adapter, folder, dtype)

    def read_updates(
        self, geometries: Mapping[str, Geometry], base: AdapterBase | None, folder: Path
    ) -> Mapping[str, LowRankUpdate]:
        """Return the updates in `adapter_model.safetensors`.

        Raises:
            AdapterFileError: If the file lacks a layer, or cannot be read.
        """
        return read_lora_tensors(load_tensors(folder / WEIGHTS_NAME), geometries)

    def load(self, base: AdapterBase, folder: Path) -> nn.Module:
        """Return the base model with the LoRA, by PEFT alone."""
        model = base.load()
        with quiet_libraries():
            return cast("Any", PeftModel).from_pretrained(model, folder).eval()


FORMAT = PlainLora()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of an export.

    Raises:
        AdapterFileError: If it cannot be read.
    """
    try:
        return cast("Any", safetensors_torch).load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"'{path}' cannot be read ({str(error).rstrip('.')}); export the adapter again."
        ) from error


def write_plain_lora(
    config: RankfoldConfig,
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    base_weight: Callable[[str], Tensor] | None = None,
) -> FoldedAdapter:
    """Write an adapter as a plain LoRA from its configuration and tensors, without its base model.

    Args:
        config: A configuration that was saved, with its layers.
        tensors: The tensors that were saved with it, by the names of PEFT's files.
        folder: An existing folder; its adapter_config.json and adapter_model.safetensors are written.
        dtype: The dtype of the written tensors.
        base_weight: Returns the base weight of a layer by its name; only for factors that are taken from it.

    Returns:
        The folded adapter, in float64.

    Raises:
        NotExactError: If no plain LoRA equals the adapter; nothing is written then.
        AdapterFileError: If configuration and tensors do not belong together, or the configuration has no
            list of layers.
    """
    adapter = fold_tensors(config, tensors, base_weight)
    write_lora(adapter, folder, dtype)
    return adapter


def write_lora(adapter: FoldedAdapter, folder: Path, dtype: torch.dtype) -> None:
    """Write a folded adapter as a plain LoRA.

    Raises:
        NotExactError: If PEFT's LoRA computes something else on a layer of this type, or the dtype cannot
            hold a value.
    """
    other_tensors = {key: tensor.contiguous() for key, tensor in adapter.tensors.items()}
    tensors = lora_tensors(adapter.updates, dtype) | other_tensors
    # The metadata is what PEFT writes, and some readers ask for it.
    content = cast("Any", safetensors_torch).save(tensors, metadata={"format": "pt"})
    text = json.dumps(lora_config(adapter), indent=2, sort_keys=True)
    write_whole(folder / WEIGHTS_NAME, content)
    write_whole(folder / CONFIG_NAME, text.encode())


def lora_tensors(updates: Mapping[str, LowRankUpdate], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of folded layers by their names in a file.

    Raises:
        NotExactError: If PEFT's LoRA computes something else on a layer of this type, or the dtype cannot
            hold a value.
    """
    tensors: dict[str, Tensor] = {}
    paths = _wrapper_paths({name: update.geometry for name, update in updates.items()})
    for name, update in updates.items():
        down, up = (matrix.contiguous() for matrix in _matrices(name, update.to_finite(name, dtype)))
        for side, matrix in (("A", down), ("B", up)):
            tensors[_tensor_name(paths[name], side, update.geometry)] = matrix
    return tensors


def _wrapper_paths(geometries: Mapping[str, Geometry]) -> dict[str, str]:
    """Return the path of the module of PEFT that has the LoRA of each layer or parameter.

    PEFT wraps a module once for each of its parameters, in their order, each time around the wrapper before.
    """
    paths = {name: name for name in geometries}
    owners: dict[str, list[str]] = {}
    for name, geometry in geometries.items():
        if isinstance(geometry, Matrices):
            owners.setdefault(name.rpartition(".")[0], []).append(name)
    for owner, names in owners.items():
        for outer, name in enumerate(reversed(names)):
            paths[name] = ".".join([owner, *["base_layer"] * outer])
    return paths


def lora_config(adapter: FoldedAdapter) -> dict[str, Any]:
    """Return PEFT's configuration of a folded adapter, whose scaling is already in its matrices.

    `r` is the largest rank, since servers reserve room by it; layers of another rank are in `rank_pattern`,
    and again in `alpha_pattern`, so that every scaling is 1. `target_modules` is a pattern where the name of
    a layer may be the end of another's.
    """
    ranks = {name: update.file_rank for name, update in adapter.updates.items()}
    largest = max(ranks.values())
    pattern = {_rank_pattern(name, ranks): rank for name, rank in ranks.items() if rank != largest}
    is_parameter = {name: isinstance(update.geometry, Matrices) for name, update in adapter.updates.items()}
    layers = sorted(name for name in ranks if not is_parameter[name])
    transposed = any(_is_transposed(update.geometry) for update in adapter.updates.values())
    if transposed and any(is_parameter.values()):
        raise NotExactError(
            "PEFT's LoRA takes no parameters beside layers with transposed weights; merge the adapter into "
            "its base instead, with --to merged."
        )
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": _target_modules(layers),
        "target_parameters": [name for name in ranks if is_parameter[name]] or None,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "modules_to_save": list(adapter.modules_to_save) or None,
        "use_rslora": False,
        "use_dora": False,
    }


def read_lora_tensors(
    tensors: Mapping[str, Tensor], geometries: Mapping[str, Geometry]
) -> dict[str, LowRankUpdate]:
    """Return the updates in tensors that `lora_tensors` made, with their scaling.

    Raises:
        AdapterFileError: If a layer is missing, or its tensors have other shapes.
    """
    updates: dict[str, LowRankUpdate] = {}
    paths = _wrapper_paths(geometries)
    for name, geometry in geometries.items():
        try:
            down, up = (tensors[_tensor_name(paths[name], side, geometry)] for side in "AB")
        except KeyError as error:
            raise AdapterFileError(f"the file lacks '{name}'; export the adapter again.") from error
        if isinstance(geometry, Conv2d):
            rank, channels = up.shape[1], geometry.in_channels // geometry.groups
            down, up = down[:rank, :channels].flatten(1), up.flatten(1)
        if isinstance(geometry, Matrices) and geometry.experts is not None:
            # The columns of PEFT's B are in the order of the ranks, and of the experts within each.
            down = down.reshape(geometry.experts, -1, down.shape[-1])
            up = up.reshape(len(up), -1, geometry.experts).permute(2, 0, 1)
        updates[name] = check_update(name, down, up, geometry)
    return updates


def _tensor_name(name: str, side: str, geometry: Geometry) -> str:
    """Return PEFT's name of a layer's matrix A or B."""
    infix, suffix = ("embedding_", "") if isinstance(geometry, Embedding) else ("", ".weight")
    return f"{PREFIX}{name}.lora_{infix}{side}{suffix}"


def _matrices(name: str, update: LowRankUpdate) -> tuple[Tensor, Tensor]:
    """Return the two matrices of a layer in the shapes of PEFT's modules."""
    match update.geometry:
        case Conv2d() as convolution:
            return _kernels(name, update, convolution)
        case Matrices(experts=int()):
            return update.down.flatten(0, 1), update.up.permute(1, 2, 0).flatten(1)
        case _:
            # The same for a Conv1D: PEFT holds its two modules as linear ones, whichever way the base lies.
            return update.down, update.up


def _kernels(name: str, update: LowRankUpdate, convolution: Conv2d) -> tuple[Tensor, Tensor]:
    """Return a convolution's matrices as kernels.

    PEFT's first kernel reads all channels at once, its second one only those of its group. So down is laid
    out once for each group, on that group's channels, with zeros on the others.
    """
    if convolution.dilation != (1, 1) or convolution.padding_mode != "zeros":
        feature = "dilation" if convolution.dilation != (1, 1) else f"'{convolution.padding_mode}' padding"
        raise NotExactError(
            f"cannot write '{name}' as plain LoRA: PEFT's LoRA leaves out the {feature} of the convolution; "
            "merge the adapter into its base instead, with --to merged."
        )
    groups, channels = convolution.groups, convolution.in_channels // convolution.groups
    kernel = update.down.reshape(update.rank, channels, *convolution.kernel_size)
    down = kernel.new_zeros(groups * update.rank, convolution.in_channels, *convolution.kernel_size)
    for group in range(groups):
        rows = slice(group * update.rank, (group + 1) * update.rank)
        down[rows, group * channels : (group + 1) * channels] = kernel
    return down, update.up[:, :, None, None]


def _target_modules(names: Sequence[str]) -> list[str] | str:
    """Return the names or the pattern by which PEFT finds these layers, and no others.

    A name in a list also stands for every module whose name ends with it. No block of a model lies inside
    another one under its whole name, but a name without a dot may end others: then one pattern has all names.
    """
    if all("." in name for name in names):
        return list(names)
    return "|".join(map(re.escape, names))


def _rank_pattern(name: str, names: Mapping[str, Any]) -> str:
    """Return a key of `rank_pattern` for one layer; a plain name also matches names that end alike."""
    return f"^{name}" if any(longer.endswith(f".{name}") for longer in names) else name


def _is_transposed(geometry: Geometry) -> bool:
    return isinstance(geometry, Linear) and geometry.transposed
