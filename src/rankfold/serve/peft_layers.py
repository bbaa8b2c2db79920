"""The layers of an adapter of PEFT's LoRA, and the modules that an adapter of any method brings whole."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from rankfold.adapter.geometry import Conv2d, Geometry
from rankfold.errors import AdapterFileError, SpecError
from rankfold.peft_plugin.layer import PREFIX
from rankfold.peft_plugin.layer_types import geometry_of
from rankfold.peft_plugin.patterns import check_expression, check_time
from rankfold.serve.forms import (
    AdapterLayer,
    Field,
    HeadForm,
    LayerForm,
    Places,
    check_servable,
    fill_up,
    modules_of,
    rank_axis,
    shape_text,
    stored_order,
)
from rankfold.store.adapter import SavedAdapter

# Fields of a configuration that change nothing of a trained adapter's output.
INERT = frozenset(
    {"auto_mapping", "base_model_name_or_path", "dropout", "dropout_position", "inference_mode"}
    | {"lora_dropout", "peft_version", "preset", "revision", "target_modules_pattern"}
)

# Fields of PEFT's LoRA that a bank follows or may pass over; others are refused where they are set.
_LORA_FIELDS = INERT | {
    *("alpha_pattern", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "lora_alpha", "modules_to_save", "peft_type", "qalora_group_size", "r"),
    *("rank_pattern", "runtime_config", "target_modules", "task_type", "use_rslora"),
}
_LORA_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def lora_layers(
    saved: SavedAdapter,
    config: LoraConfig,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    places: Places,
) -> Iterator[AdapterLayer]:
    """Yield the layers of an adapter of PEFT's LoRA.

    Raises:
        AdapterFileError: If a layer is not in the model, lacks one of its matrices, or has another size.
        SpecError: If the configuration uses a variant of LoRA that a bank does not serve.
    """
    _check_lora(saved, config)
    pairs = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
    modules = modules_of(model)
    rank_of = _pattern_reader(config, "rank_pattern", config.r, modules)
    alpha_of = _pattern_reader(config, "alpha_pattern", config.lora_alpha, modules)
    for key in tensors:
        ending = next((ending for ending in pairs if key.endswith(ending)), None)
        if ending is None:
            continue
        name = key.removesuffix(ending)
        keys = key, name + pairs[ending]
        if name not in modules or keys[1] not in tensors:
            raise AdapterFileError(
                f"{saved.title} does not fit this base model: it has '{key}', without a layer or a second "
                "matrix for it; name the model it was trained on."
            )
        geometry, rank = geometry_of(name, modules[name], None), rank_of(name)
        check_servable(saved, model, name, geometry)
        _check_lora_layer(saved, name, geometry, rank, [tensors[key] for key in keys])
        sides = {"down": (rank, geometry.in_features), "up": (geometry.out_features, rank)}
        fields: dict[str, Field] = {}
        for role, size in sides.items():
            shape = stored_order(role, torch.empty(size, device="meta"), geometry).shape
            fields[role] = places.place((role, name), fill_up(shape, rank_axis(role, geometry)))
        scale = alpha_of(name) / (rank**0.5 if config.use_rslora else rank)
        form = LayerForm(name, geometry, tuple(fields.items()))
        yield AdapterLayer(form, partial(_lora_matrices, keys, geometry, scale))


def _pattern_reader(
    config: LoraConfig, option: str, usual: Any, names: Collection[str]
) -> Callable[[str], Any]:
    """Return the function that reads a rank or an alpha of a layer as PEFT does."""
    values: Mapping[str, Any] = getattr(config, option) or {}
    for pattern in values:
        check_expression(option, pattern)
    check_time({rf"(.*\.)?({pattern})$": (option, pattern) for pattern in values}, names)
    return lambda name: values.get(get_pattern_key(list(values), name), usual)


def _lora_matrices(
    keys: tuple[str, str], geometry: Geometry, scale: float, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    down, up = (tensors[key].flatten(1) for key in keys)
    up = up.to(torch.promote_types(up.dtype, torch.float32)) * scale
    return {"down": stored_order("down", down, geometry), "up": stored_order("up", up, geometry)}


def _check_lora(saved: SavedAdapter, config: LoraConfig) -> None:
    usual, values = (cast("dict[str, Any]", one.to_dict()) for one in (LoraConfig(), config))
    variants = [
        name
        for name, value in values.items()
        if name not in _LORA_FIELDS and (value or usual.get(name)) and value != usual.get(name)
    ]
    if config.init_lora_weights not in _LORA_STARTS:
        variants.append("init_lora_weights")
    if variants:
        raise SpecError(
            f"{saved.title} has {variants[0]}={values[variants[0]]!r}, which a bank does not serve; load it "
            "with PEFT, or convert it to plain LoRA."
        )


def _check_lora_layer(
    saved: SavedAdapter, name: str, geometry: Geometry, rank: int, matrices: Sequence[Tensor]
) -> None:
    sizes = [tuple(matrix.flatten(1).shape) for matrix in matrices]
    if sizes != [(rank, geometry.in_features), (geometry.out_features, rank)]:
        raise AdapterFileError(
            f"{saved.title} does not fit this base model: its matrices of '{name}' have "
            f"{shape_text(sizes[0])} and {shape_text(sizes[1])} numbers; name the model it was trained on."
        )
    is_plain = not isinstance(geometry, Conv2d) or (
        geometry.groups == 1 and geometry.dilation == (1, 1) and geometry.padding_mode == "zeros"
    )
    if not is_plain:
        raise SpecError(
            f"{saved.title} has a LoRA on '{name}', a convolution with groups, dilation or other padding, "
            "which a bank does not serve; load it with PEFT."
        )


def head_layers(
    saved: SavedAdapter,
    model: nn.Module,
    endings: Sequence[str],
    tensors: Mapping[str, Tensor],
    places: Places,
) -> Iterator[AdapterLayer]:
    """Yield the modules that an adapter brings whole.

    Raises:
        AdapterFileError: If a tensor has no place in the model, or another size than there; only the outputs
            of the last linear layer of a head may be more or fewer.
        SpecError: If a module cannot be another one for each row.
    """
    heads: dict[str, list[str]] = {}
    modules = {name: part for name, part in modules_of(model).items() if name.endswith(tuple(endings))}
    for key, tensor in tensors.items():
        if f".{PREFIX}" in key or ".lora_" in key or _is_base_embedding(model, key, tensor):
            continue
        name = next((name for name in modules if key.startswith(f"{name}.")), None)
        if name is None:
            raise AdapterFileError(
                f"{saved.title} has '{key}', for which this base model has no place; make the bank with a "
                "model that has the adapter's task head."
            )
        heads.setdefault(name, []).append(key)
    for name, keys in heads.items():
        own_names = {key: key.removeprefix(f"{name}.") for key in keys}
        _check_head(saved, name, modules[name], {own_names[key]: tensors[key].shape for key in keys})
        fields = tuple((own_names[key], places.place(key, tensors[key].shape)) for key in keys)
        yield AdapterLayer(HeadForm(name, fields), partial(_head_tensors, own_names))


def _head_tensors(names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[key] for key, name in names.items()}


def _is_base_embedding(model: nn.Module, key: str, tensor: Tensor) -> bool:
    """Whether a tensor is the base model's own, as PEFT saves an embedding with an adapter on it."""
    path, _, leaf = key.replace(".base_layer.", ".").rpartition(".")
    module = modules_of(model).get(path) if leaf == "weight" else None
    if not isinstance(module, nn.Embedding) or module.weight.shape != tensor.shape:
        return False
    return torch.equal(module.weight.to(tensor), tensor)


def _check_head(
    saved: SavedAdapter, name: str, module: nn.Module, shapes: Mapping[str, Sequence[int]]
) -> None:
    parts = modules_of(module)
    if any(isinstance(part, nn.Embedding) or hasattr(part, "running_mean") for part in parts.values()):
        raise SpecError(
            f"{saved.title} brings the module '{name}', a {type(module).__name__}, which a bank cannot "
            "exchange for each row; load the adapter alone (rankfold.load)."
        )
    # The last linear layer has as many outputs as the adapter's task has classes.
    last = next((path for path, part in reversed(parts.items()) if isinstance(part, nn.Linear)), None)
    outputs = [] if last is None else [f"{last}.{key}".lstrip(".") for key in ("weight", "bias")]
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    for key in sorted(wanted.keys() | shapes.keys()):
        own, base = shapes.get(key), wanted.get(key)
        first = int(key in outputs)
        if own is None or base is None or own[first:] != base[first:] or len(own) != len(base):
            raise AdapterFileError(
                f"{saved.title} does not fit this base model: its '{name}.{key}' has shape "
                f"{shape_text(own)}, and the model asks for {shape_text(base)}; name the model it was "
                "trained on."
            )
