"""How many numbers an adapter stores, trains, and is training now."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self, final

from torch import nn

from rankfold.adapter.find import adapters_in, hosts_in
from rankfold.adapter.roles import ROLES
from rankfold.errors import SpecError, unknown_name


@final
@dataclass(frozen=True, slots=True)
class Count:
    """Three counts of numbers.

    Args:
        stored: What a file keeps. A shared factor counts once, a frozen one not at all: it is kept as a seed.
        trainable: What the method trains.
        active: What would be updated in a step now: trainable, not frozen, and in an active adapter.
    """

    stored: int = 0
    trainable: int = 0
    active: int = 0

    def __add__(self, other: Self) -> "Count":
        """Return the sums."""
        return Count(self.stored + other.stored, self.trainable + other.trainable, self.active + other.active)


@final
@dataclass(frozen=True, slots=True)
class ParameterCount:
    """The counts of the adapters of a model.

    Args:
        stored: What a file keeps.
        trainable: What the method trains.
        active: What would be updated in a step now.
        heads: Trained numbers outside the adapters, such as a new classification head.
        total: All parameters of the model, base included; frozen factors are not parameters.
        by_factor: Counts by role: down, core, up, scale, router.
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


def count_parameters(model: nn.Module, adapter_name: str | None = None) -> ParameterCount:
    """Count the numbers of a model's adapters; works on the meta device, without any weight.

    Args:
        model: A model with rankfold adapters.
        adapter_name: Which adapter, if not all of them.

    Raises:
        SpecError: If the model has no rankfold adapter, or none of this name.
    """
    known = {name for _, name, _ in adapters_in(model)}
    if not known:
        raise SpecError("the model has no rankfold adapter to count; add one with peft.get_peft_model.")
    if adapter_name is not None and adapter_name not in known:
        raise unknown_name("adapter", adapter_name, known)
    names = known if adapter_name is None else {adapter_name}

    seen: set[int] = set()
    by_factor = {role: Count() for role in ROLES}
    by_module: dict[str, Count] = {}
    active_names = {path: host.active_adapters for path, host in hosts_in(model)}
    for path, name, adapter in adapters_in(model):
        for role in ROLES:
            part: nn.Module | None = getattr(adapter, role)
            parameters = [] if part is None else [p for p in part.parameters() if id(p) not in seen]
            seen.update(id(parameter) for parameter in parameters)
            if name not in names:
                continue
            numbers = sum(parameter.numel() for parameter in parameters)
            updated = sum(p.numel() for p in parameters if p.requires_grad and name in active_names[path])
            count = Count(numbers, numbers, updated)
            by_factor[role] += count
            by_module[path] = by_module.get(path, Count()) + count
    totals = sum(by_factor.values(), Count())
    everything = list(model.parameters())
    return ParameterCount(
        totals.stored,
        totals.trainable,
        totals.active,
        heads=sum(p.numel() for p in everything if p.requires_grad and id(p) not in seen),
        total=sum(parameter.numel() for parameter in everything),
        by_factor=by_factor,
        by_module=by_module,
    )
