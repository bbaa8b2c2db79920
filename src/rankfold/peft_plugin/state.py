"""Checks of a saved adapter against the model it is loaded on: its layers, its base weights and its tensors.

When an adapter is added to a model, the names and sizes of its layers and a sketch of the base weights are
written into its configuration; loading compares them. The sketch is not a hash: the same model loaded in
another dtype, or quantised, must still be recognised. So it is a few weights of a few layers, compared with a
tolerance.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.adapter.build import Builder
from rankfold.adapter.layout import (
    Layout,
    common_depth,
    describe_layer,
    layer_name,
    layers_in,
    layout_of,
    module_path,
    parameter_path,
)
from rankfold.errors import AdapterFileError, RankfoldWarning, SpecError
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.layer import PREFIX, RankfoldLayer, is_meta, walk
from rankfold.peft_plugin.targets import COMPILED_PREFIX, Target, find_targets, follow_renamings

_LAYERS, _WEIGHTS = 16, 4
_LARGEST = torch.finfo(torch.float16).max

# The names of what an adapter's parts hold, and of what PEFT puts around layers and models.
_RESERVED = (
    *("bias", "block", "left", "message_gates", "nodes", "right", "state_gates", "value", "weight"),
    *("base_layer", "model", "modules_to_save", "original_module"),
)
_SLOTS = ("modules_to_save", "trainable_tokens", "lora_", PREFIX)
_WRAPPER = "base_model.model."
_FLOAT_BASE, _QUANTISED_BASE = "float", "quantised"

# Rounding a weight to bfloat16 moves it by at most 2**-9 of itself, to 4 bits by about a tenth of a typical
# one.
_TOLERANCE = {_FLOAT_BASE: 0.02, _QUANTISED_BASE: 0.3}


def fingerprint(targets: Sequence[Target]) -> str | None:
    """Return the sketch of the base weights under some targets, or None if the weights are not at hand."""
    if not targets:
        return None
    samples_of = [targets[index] for index in _spread(len(targets), _LAYERS)]
    samples = [_sample(target) for target in samples_of]
    if any(sample is None for sample in samples):
        return None
    is_quantised = any(target.quantization_backend is not None for target in targets)
    kind = _QUANTISED_BASE if is_quantised else _FLOAT_BASE
    values = torch.cat([sample for sample in samples if sample is not None])
    values = values.clamp(-_LARGEST, _LARGEST).to(torch.float16)
    return f"{kind}:{values.numpy().tobytes().hex()}"


def check_fingerprint(saved_value: str, targets: Sequence[Target]) -> None:
    """Compare the base weights under some targets with a sketch.

    Raises:
        AdapterFileError: If they are of another model, or the sketch is damaged.
    """
    if are_of_one_base(saved_value, fingerprint(targets)):
        return
    raise AdapterFileError(
        "the adapter was trained on another base model: the base weights differ from its 'base_fingerprint'; "
        "load the base model it was trained on, or remove 'base_fingerprint' from its adapter_config.json to "
        "use it here all the same; a new adapter takes a configuration that no other was trained with."
    )


def are_of_one_base(sketch: str | None, other_sketch: str | None) -> bool:
    """Return whether two sketches may be of one base model, in whatever dtypes; None may be of any.

    Raises:
        AdapterFileError: If one is damaged.
    """
    if sketch is None or other_sketch is None:
        return True
    (kind, values), (other_kind, other_values) = _read(sketch), _read(other_sketch)
    tolerance = max(_TOLERANCE[kind], _TOLERANCE[other_kind])
    return bool(
        values.shape == other_values.shape and (values - other_values).norm() <= tolerance * values.norm()
    )


def _spread(size: int, count: int) -> list[int]:
    """Return up to `count` indices, spread evenly over `size`."""
    count = min(size, count)
    return [index * size // count for index in range(count)]


def _sample(target: Target) -> Tensor | None:
    layer, backend = target.base_layer, target.quantization_backend
    if is_meta(layer):
        return None
    if backend is not None and not backend.supports_merge:
        return None
    weight = _original_weight(target)
    if type(weight) is not Tensor:
        return None
    flat = weight.reshape(-1)
    return flat[torch.tensor(_spread(flat.numel(), _WEIGHTS), device=flat.device)].float().cpu()


def _original_weight(target: Target) -> Tensor:
    """Return the base weight, dequantised, without merged adapters."""
    if isinstance(target.module, RankfoldLayer):
        return target.module.original_weight()
    if target.quantization_backend is not None:
        return target.quantization_backend.get_base_weight(target.base_layer)
    return target.weight.detach()


def _read(sketch: str) -> tuple[str, Tensor]:
    kind, _, digits = sketch.partition(":")
    try:
        data = bytearray.fromhex(digits)
        values = torch.frombuffer(data, dtype=torch.float16).float()
    except ValueError as error:
        raise AdapterFileError(
            f"base_fingerprint={sketch!r} is damaged; restore adapter_config.json."
        ) from error
    if kind not in _TOLERANCE:
        raise AdapterFileError(
            f"base_fingerprint={sketch!r} is damaged or newer; restore its file or update rankfold."
        )
    return kind, values


def layout_of_targets(targets: Sequence[Target]) -> Layout:
    """Return the layout of the layers that an adapter gets."""
    return layout_of({target.name.removeprefix(COMPILED_PREFIX): target.geometry for target in targets})


def check_layers(saved_value: Layout, targets: Sequence[Target]) -> None:
    """Compare the layers that an adapter gets with those it was saved from, wherever the model hangs.

    Raises:
        AdapterFileError: If one is missing, added or of another size, or the list is damaged.
    """
    saved_layers = {name: describe_layer(geometry) for name, geometry in layers_in(saved_value).items()}
    layers = {
        target.name.removeprefix(COMPILED_PREFIX): describe_layer(target.geometry) for target in targets
    }
    # The model may be in another module now than it was when the adapter was saved.
    if not saved_layers.keys() & layers.keys():
        saved_layers, layers = _below_common(saved_layers), _below_common(layers)
    if saved_layers == layers:
        return
    first = next(name for name in (*layers, *saved_layers) if saved_layers.get(name) != layers.get(name))
    present, saved_as = layers.get(first, "not adapted"), saved_layers.get(first, "not adapted")
    raise AdapterFileError(
        f"the adapter was saved from other layers: '{first}' is {present} in this model, but was {saved_as}; "
        "load the base model it was trained on, with its adapter_config.json as it was saved."
    )


def _below_common(sizes: Mapping[str, str]) -> dict[str, str]:
    """Return the sizes by path below the deepest module that holds all layers."""
    depth = common_depth(sizes)
    return {".".join(name.split(".")[depth:]): size for name, size in sizes.items()}


def check_tensors(model: nn.Module, adapter_name: str, tensors: Mapping[str, Tensor]) -> set[str]:
    """Check that a saved adapter has every tensor of the adapter in the model, and no other.

    Args:
        model: It has the adapter, still without the saved values.
        adapter_name: The adapter's name in the model.
        tensors: The saved tensors, by their keys in the model.

    Returns:
        The keys of the adapter's tensors.

    Raises:
        AdapterFileError: If a tensor is missing, or has no place in the model.
    """
    own_keys = {
        f"{path}.{attribute}.{adapter_name}.{key}"
        for path, layer in walk(model)
        if isinstance(layer, RankfoldLayer)
        for attribute in layer.adapter_layer_names
        if adapter_name in getattr(layer, attribute)
        for key in getattr(layer, attribute)[adapter_name].state_dict()
    }
    missing = sorted(own_keys - tensors.keys())
    if missing:
        raise AdapterFileError(
            f"the adapter's file lacks {len(missing)} of its {len(own_keys)} tensors, such as "
            f"'{missing[0]}'; it is damaged or belongs to another base model."
        )
    surplus = sorted(key for key in tensors if f".{PREFIX}" in key and key not in own_keys)
    if surplus:
        raise AdapterFileError(
            f"the adapter's file holds {len(surplus)} tensors that have no place in the model, such as "
            f"'{surplus[0]}'; it belongs to another base model or configuration."
        )
    return own_keys


def rename_tensors(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of an adapter with other names of their layers, by the names that they have."""

    def rename(key: str) -> str:
        start, marker, end = key.partition(f".{PREFIX}")
        path = start.removeprefix(_WRAPPER)
        name = layer_name(path)
        if not marker or name not in names:
            return key
        renamed = names[name]
        if name != path:
            renamed = parameter_path(renamed)
        return f"{start.removesuffix(path)}{renamed}{marker}{end}"

    return {rename(key): tensor for key, tensor in tensors.items()} if names else dict(tensors)


def move_tensors(model: nn.Module, adapter_name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an adapter under the names of layers that hang elsewhere in a model.

    An adapter of a model with a head may be loaded on the model inside of it, whose layers lack the first
    part of their names, or the other way round. A head that the model inside lacks is named in a warning.

    Args:
        model: It has the adapter, still without the saved values.
        adapter_name: The adapter's name in the model.
        tensors: The saved tensors.
    """
    layers = {
        path.removeprefix(_WRAPPER)
        for path, layer in walk(model)
        if isinstance(layer, RankfoldLayer) and adapter_name in layer.rankfold_adapters
    }
    own_keys = [key for key in tensors if f".{PREFIX}" in key]
    paths = {key.partition(f".{PREFIX}")[0].removeprefix(_WRAPPER) for key in own_keys}
    names = {} if paths & layers else _moved_names(sorted(paths), layers)
    heads = sorted({key.removeprefix(_WRAPPER).rpartition(".")[0] for key in tensors.keys() - set(own_keys)})
    lost_heads = [head for head in heads if not any(path.endswith(head) for path, _ in walk(model))]
    if names and lost_heads:
        warnings.warn(
            f"the adapter's '{lost_heads[0]}' is left out, which this model does not have.",
            RankfoldWarning,
            stacklevel=2,
        )
    return rename_tensors(tensors, names)


def _moved_names(paths: Sequence[str], layers: Collection[str]) -> dict[str, str]:
    """Return names of layers by those of a file that differ from them in their first part alone."""
    for layer in layers if paths else ():
        first = paths[0]
        start = first.removesuffix(layer) if first.endswith(f".{layer}") else ""
        new_start = layer.removesuffix(first) if layer.endswith(f".{first}") else ""
        names = {path: f"{new_start}{path.removeprefix(start)}" for path in paths}
        fits = all(path.startswith(start) for path in paths) and set(names.values()) <= set(layers)
        if (start or new_start) and fits:
            return names
    return {}


def check_names(model: nn.Module, adapter_names: Collection[str]) -> None:
    """Check that several adapters of one model can be saved apart.

    To save one, PEFT leaves out every tensor that has the name of another between two dots, be it as the
    name of a layer.

    Raises:
        SpecError: If one has the name of a part of the model.
    """
    if len(adapter_names) <= 1:
        return
    parts = set(_RESERVED)
    modules = list(walk(model))
    owned = (
        f"{path}.{name}"
        for path, part in modules
        for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    )
    for path in (*(path for path, _ in modules), *owned):
        pieces = path.split(".")
        parts.update(
            piece
            for before, piece in zip(("", *pieces), pieces, strict=False)
            if not before.startswith(_SLOTS)
        )
    for name in adapter_names:
        if name in parts or name.startswith(PREFIX):
            raise SpecError(
                f"the adapter name '{name}' is also that of a part of the model, so PEFT would leave tensors "
                "out of the files of the adapters beside it; give the adapter another name, or keep it alone "
                "on its model."
            )


def check_finite(tensors: Mapping[str, Tensor], title: str = "the adapter") -> None:
    """Check that every value of a saved adapter is finite.

    Args:
        tensors: Its tensors, by name.
        title: The adapter, as the message names it.

    Raises:
        AdapterFileError: If one is not.
    """
    for key, tensor in tensors.items():
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        # Eight-bit types do not know which of their numbers are finite.
        if not (tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all():
            raise AdapterFileError(
                f"{title} has values that are not finite, in '{key}'; load another checkpoint of it, or "
                "train it again with a smaller learning rate."
            )


def check_heads(model: nn.Module, modules_to_save: Sequence[str], saved_tensors: Collection[str]) -> None:
    """Check that a file has the modules that are saved whole, before PEFT looks for them.

    Args:
        model: The model that the adapter is added to.
        modules_to_save: Endings of the names of these modules.
        saved_tensors: The names of the file's tensors.

    Raises:
        AdapterFileError: If the model has one that the file lacks.
    """
    for name, module in model.named_modules():
        is_saved_whole = name.endswith(tuple(modules_to_save)) and any(True for _ in module.parameters())
        if is_saved_whole and not any(f".{name}." in key for key in saved_tensors):
            raise AdapterFileError(
                f"the adapter was saved without '{name}', which this model has and its task_type or "
                "modules_to_save asks for; load it on the model it was trained on, or set both to null in "
                f"its adapter_config.json to keep the '{name}' of this model."
            )


def check_head_sizes(head: nn.Module) -> None:
    """Let the next loading of a module that is saved whole compare sizes, with an error that names both.

    Only then has PEFT left out the tensors of other sizes, if it is told to by `ignore_mismatched_sizes`.
    """

    def compare(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
        handle.remove()
        for key, tensor in module.state_dict().items():
            saved_tensor = state.get(f"{prefix}{key}", tensor)
            if saved_tensor.shape != tensor.shape:
                name = f"{prefix}{key}".removeprefix("base_model.model.").split(".modules_to_save.")[0]
                raise AdapterFileError(
                    f"the adapter's '{name}' has the size {tuple(saved_tensor.shape)} and this model's "
                    f"{tuple(tensor.shape)}; load a model with as many labels as the adapter was trained on."
                )

    handle = head.register_load_state_dict_pre_hook(compare)


def expected_shapes(model: nn.Module, config: RankfoldConfig) -> dict[str, torch.Size]:
    """Return the shape of every tensor that a saved adapter has on a model; nothing is built in memory.

    Args:
        model: The base model, without PEFT around it.
        config: The adapter's configuration, which stays as it is.

    Returns:
        Shapes by the names of PEFT's files.

    Raises:
        SpecError: If a target matches nothing or cannot be adapted.
    """
    follow_renamings(model, config)
    targets = list(find_targets(model, config).values())
    shapes: dict[str, torch.Size] = {}
    with warnings.catch_warnings(), torch.device("meta"):
        # The warnings on ranks and relays are given when the adapter is added.
        warnings.simplefilter("ignore", RankfoldWarning)
        builder = Builder({target.path: target.site for target in targets}, name="default")
        for target in targets:
            name = config.saved_names.get(target.name, target.name.removeprefix(COMPILED_PREFIX))
            name = module_path(name, target.geometry)
            for role, part in builder.build(target.path).owned_parts.items():
                for key, tensor in part.state_dict().items():
                    shapes[f"{_WRAPPER}{name}.{PREFIX}{role}.{key}"] = tensor.shape
    return shapes


def check_shapes(expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
    """Compare saved tensors with the shapes that their configuration asks for.

    Raises:
        AdapterFileError: If a tensor has another shape.
    """
    for key, tensor in tensors.items():
        shape = expected.get(key.replace(COMPILED_PREFIX, ""), tensor.shape)
        if tensor.shape != shape:
            raise AdapterFileError(
                f"'{key}' has shape {tuple(tensor.shape)}, but its configuration asks for {tuple(shape)}; "
                "restore the adapter's files, which do not belong together."
            )
