"""Warm start: begin a training with the weights of a saved adapter in place of initial values."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import peft
from peft import PeftConfig, PeftModel
from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError, SpecError
from rankfold.runs.fields import differences
from rankfold.runs.record import InitInfo
from rankfold.store.adapter import WEIGHTS_NAME, SavedAdapter

logger = logging.getLogger("rankfold.runs")

# Fields of a configuration that say where an adapter is from or how it is trained, not what it computes.
_FREE_FIELDS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",
    "peft_version",
    "revision",
    "task_type",
}


def with_seed_of(adapter: SavedAdapter, options: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a method's options with the seed of the adapter, whose frozen factors are drawn from it."""
    seed = adapter.config_values.get("seed")
    return {**({} if seed is None else {"seed": seed}), **options}


def start_from(
    model: PeftModel, adapter: SavedAdapter, config: PeftConfig, label_names: Sequence[str] | None
) -> InitInfo:
    """Give a model's new adapter the weights of a saved one, and its head if the classes are the same.

    Args:
        model: With the adapter `default`.
        adapter: The saved adapter.
        config: Configuration of the new adapter.
        label_names: Class names of the new task in the order of their ids.

    Raises:
        SpecError: If the two were made with different options.
        AdapterFileError: If names or shapes of their weights differ.
    """
    _check_same_method(adapter, cast(Any, config).to_dict())
    tensors = cast("dict[str, Tensor]", cast(Any, peft).get_peft_model_state_dict(model))
    is_head = _HeadNames(adapter.modules_to_save)
    _check_same_shapes(adapter, tensors, is_head)
    head = {name: tensor for name, tensor in adapter.tensors.items() if is_head(name)}
    known_names = None if adapter.manifest is None else adapter.manifest.label_names
    takes_head = (
        adapter.manifest is not None
        and known_names == (None if label_names is None else tuple(label_names))
        and all(name in tensors and tensors[name].shape == item.shape for name, item in head.items())
    )
    if head and not takes_head:
        logger.info("the head of %s is not taken over: its classes are others, or not known.", adapter.title)
    taken = {name: item for name, item in adapter.tensors.items() if not is_head(name) or takes_head}
    cast(Any, peft).set_peft_model_state_dict(model, {**tensors, **taken})
    state = "none" if not head else "taken" if takes_head else "new"
    return InitInfo(adapter.source, adapter.sha256()[WEIGHTS_NAME], state)


class _HeadNames:
    """Whether a tensor belongs to one of the modules that are trained in full."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = set(modules)

    def __call__(self, name: str) -> bool:
        return any(f".{module}." in f".{name}" for module in self._modules)


def _check_same_method(adapter: SavedAdapter, config: Mapping[str, Any]) -> None:
    old, new = (
        _comparable({name: value for name, value in values.items() if name not in _FREE_FIELDS})
        for values in (adapter.config_values, config)
    )
    names = [name for name in old if name in new and not name.endswith("dropout")]
    change = next(differences({name: old[name] for name in names}, {name: new[name] for name in names}), None)
    if change is not None:
        raise SpecError(
            f"{adapter.title} was made with other options: {change}; give the same with --set, or leave out "
            "--init-from."
        )


def _comparable(values: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return a configuration as JSON values in which the order of names does not matter."""

    def plain(value: object) -> object:
        return sorted(cast("set[str]", value)) if isinstance(value, set | frozenset) else str(value)

    read: dict[str, Any] = json.loads(json.dumps(values, default=plain))
    return {
        name: sorted(cast("list[Any]", value), key=str) if isinstance(value, list) else value
        for name, value in read.items()
    }


def _check_same_shapes(adapter: SavedAdapter, tensors: Mapping[str, Tensor], is_head: _HeadNames) -> None:
    old = {name: tuple(item.shape) for name, item in adapter.tensors.items() if not is_head(name)}
    new = {name: tuple(item.shape) for name, item in tensors.items() if not is_head(name)}
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise AdapterFileError(
                f"{adapter.title} does not fit this run: '{name}' has the shape {old.get(name)} there and "
                f"{new.get(name)} here; give the same model, method and options, or leave out --init-from."
            )
