"""Parameter counts of a model's adapters: stored, trainable and active, by factor and by layer."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self, cast, final

import peft
from peft import PeftModel
from torch import Tensor, nn

from rankfold.adapter import ROLES
from rankfold.adapter.module import Adapter, adapters_in, hosts_in
from rankfold.errors import SpecError, unknown_name

_SAVED_WHOLE = ".modules_to_save."


@final
@dataclass(frozen=True, slots=True)
class Count:
    """Three parameter counts of one part of an adapter.

    Args:
        stored: Parameters that a file keeps. A shared factor counts once, a frozen one not at all: it is kept
            as a seed.
        trainable: Parameters that the method trains.
        active: Parameters that a step would update now: trainable, not frozen, and in an active adapter.
    """

    stored: int = 0
    trainable: int = 0
    active: int = 0

    def __add__(self, count: Self) -> "Count":
        """Return the sums."""
        return Count(self.stored + count.stored, self.trainable + count.trainable, self.active + count.active)


@final
@dataclass(frozen=True, slots=True)
class ParameterCount:
    """The parameter counts of a model's adapters.

    Args:
        stored: Parameters that a file keeps.
        trainable: Parameters that the method trains.
        active: Parameters that a step would update now.
        heads: Parameters beside the adapters, such as a new classification head: those of modules that are
            saved whole, and whatever else is trained.
        total: All parameters of the model, base included; frozen factors are not parameters.
        by_factor: Counts by role: down, core, up, scale, router; of PEFT's own methods by the tensor's name,
            such as lora_A.
        by_module: Counts by path of the layer; a shared factor counts at the layer that owns it.
    """

    stored: int
    trainable: int
    active: int
    heads: int
    total: int
    by_factor: dict[str, Count] = field(default_factory=dict[str, Count])
    by_module: dict[str, Count] = field(default_factory=dict[str, Count])

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain dictionaries."""
        return asdict(self)


_Entry = tuple[str, str, Count]
"""A layer's path, a factor and the factor's counts."""


def count_parameters(model: nn.Module, adapter_name: str | None = None) -> ParameterCount:
    """Count the parameters of a model's adapters; works on the meta device, without any weight.

    Adapters of PEFT's own methods are counted too: `stored` is the size of the state dict that PEFT saves,
    and `trainable` and `active` are both the parameters that have `requires_grad` now.

    Args:
        model: A model with adapters, of rankfold or of any other method of PEFT.
        adapter_name: Which adapter, if not all of them.

    Raises:
        SpecError: If the model has no adapter, or none of this name.
    """
    adapters = list(adapters_in(model))
    if adapters:
        known_names = {name for _, name, _ in adapters}
        entries, counted_ids = _factors(model, adapters, _select_names(adapter_name, known_names))
    elif isinstance(model, PeftModel):
        entries, counted_ids = _tensors(model, _select_names(adapter_name, set(model.peft_config)))
    else:
        raise SpecError("the model has no adapter to count; add one with peft.get_peft_model.")
    totals = sum((count for _, _, count in entries), Count())
    by_role = {role: Count() for role in ROLES} if adapters else {}
    return ParameterCount(
        totals.stored,
        totals.trainable,
        totals.active,
        heads=sum(p.numel() for name, p in model.named_parameters() if _is_head(name, p, counted_ids)),
        total=sum(parameter.numel() for parameter in model.parameters()),
        by_factor=by_role | _sums((factor, count) for _, factor, count in entries),
        by_module=_sums((path, count) for path, _, count in entries),
    )


def _select_names(adapter_name: str | None, known_names: set[str]) -> set[str]:
    """Return the names of the adapters to count."""
    if adapter_name is not None and adapter_name not in known_names:
        raise unknown_name("adapter", adapter_name, known_names)
    return known_names if adapter_name is None else {adapter_name}


def _factors(
    model: nn.Module, adapters: Iterable[tuple[str, str, Adapter]], names: set[str]
) -> tuple[list[_Entry], set[int]]:
    """Return the counts of rankfold's factors, and the ids of the parameters of all adapters."""
    seen_ids: set[int] = set()
    entries: list[_Entry] = []
    active_names = {path: host.active_adapters for path, host in hosts_in(model)}
    for path, name, adapter in adapters:
        for role in ROLES:
            part: nn.Module | None = getattr(adapter, role)
            parameters = [] if part is None else [p for p in part.parameters() if id(p) not in seen_ids]
            seen_ids.update(map(id, parameters))
            size = sum(parameter.numel() for parameter in parameters)
            active = sum(p.numel() for p in parameters if p.requires_grad and name in active_names[path])
            if name in names:
                entries.append((path, role, Count(size, size, active)))
    return entries, seen_ids


def _tensors(model: PeftModel, names: set[str]) -> tuple[list[_Entry], set[int]]:
    """Return the counts of the tensors of PEFT's own methods, and the ids of the trained parameters."""
    trained_parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _SAVED_WHOLE not in name
    }
    entries = list(_stored_tensors(model, names))
    for key, parameter in trained_parameters.items():
        parts = key.split(".")
        if names.issuperset(part for part in parts if part in model.peft_config):
            path, factor = _path_and_factor(".".join(part for part in parts if part not in model.peft_config))
            entries.append((path, factor, Count(0, parameter.numel(), parameter.numel())))
    return entries, set(map(id, trained_parameters.values()))


def _stored_tensors(model: PeftModel, names: set[str]) -> Iterator[_Entry]:
    """Yield the counts of the tensors that PEFT saves of adapters, without modules that are saved whole."""
    for name in names:
        heads = {
            key.replace(f"{_SAVED_WHOLE}{name}", "")
            for key, _ in model.named_parameters()
            if _SAVED_WHOLE in key
        }
        # Rows of a resized or targeted embedding are the base's, and PEFT would ask the hub about them.
        state: Mapping[str, Tensor] = cast(Any, peft).get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=False
        )
        for key, tensor in state.items():
            if key not in heads:
                yield *_path_and_factor(key), Count(stored=tensor.numel())


def _path_and_factor(key: str) -> tuple[str, str]:
    path, _, factor = key.removesuffix(".weight").rpartition(".")
    return path, factor


def _is_head(name: str, parameter: nn.Parameter, counted_ids: set[int]) -> bool:
    """Return whether a parameter beside the adapters is saved whole, or trained."""
    return id(parameter) not in counted_ids and (parameter.requires_grad or _SAVED_WHOLE in name)


def _sums(counts: Iterable[tuple[str, Count]]) -> dict[str, Count]:
    """Return the sums of counts by key."""
    sums: dict[str, Count] = {}
    for key, count in counts:
        sums[key] = sums.get(key, Count()) + count
    return sums
