"""Groups of parameters, each with its own learning rate, and the optimiser that is made of them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from rankfold.adapter import ROLES
from rankfold.adapter.geometry import Embedding
from rankfold.adapter.module import Adapter, adapters_in
from rankfold.errors import SpecError, unknown_name
from rankfold.train.rates import EMBEDDING, HEAD, RATIO_POWERS, Rates, RateTable, check_positive, group_name

logger = logging.getLogger("rankfold.train")

_OptimizerT = TypeVar("_OptimizerT", bound=Optimizer)

_ORDER = (*ROLES, EMBEDDING, HEAD)
_GROUP_OPTIONS = {"adapter_name", *(each.name for each in fields(Rates))}
_EMBEDDING_RATE = 1e-6


def parameter_groups(  # noqa: PLR0913 (four ways to ask, each with its options)
    model: nn.Module,
    *,
    lr: float,
    tlora_ratio: float | None = None,
    loraplus_ratio: float | None = None,
    groups: Mapping[str, float] | None = None,
    per_module: bool = False,
    base_role: str = "down",
    embedding_lr: float | None = None,
    weight_decay: float = 0.0,
    adapter_name: str | None = None,
) -> list[dict[str, Any]]:
    """Return what a model trains, as groups for any optimiser of torch, each with its learning rate.

    Without a ratio every group has the rate `lr`. `tlora_ratio`, `per_module`, `loraplus_ratio` and `groups`
    are the ways to ask for others; give one of them. Everything that is trained outside adapters, such as a
    new head, is a group at the base rate. Beside what optimisers read, a group has its `name`, its `role` and
    its `multiplier`. The table of groups is logged.

    Args:
        model: A model with rankfold adapters.
        lr: The base learning rate.
        tlora_ratio: TLoRA+: down : core : up = 1 : ratio^1.5 : ratio^0.5.
        loraplus_ratio: LoRA+: the up factor, and vectors such as a learned scale, at this multiple.
        groups: Free multiples by role: `down`, `core`, `up`, `scale`, `router` and `head`; the others have 1.
        per_module: TLoRA+ with the sizes of each layer in place of a ratio.
        base_role: In TLoRA+, which of `down`, `core` and `up` has the base rate.
        embedding_lr: In LoRA+, the learning rate of adapters on embeddings; 1e-6 if None.
        weight_decay: Of matrices; scales, biases and other vectors have none.
        adapter_name: Leave other adapters out, even if they are trainable; all adapters if None.

    Raises:
        SpecError: If a number, role or adapter name is not possible, options do not go together, the layers
            that share a factor ask for different rates, or a multiple is asked for where nothing is trained.

    Examples:
        >>> import peft, rankfold, torch
        >>> model = peft.get_peft_model(
        ...     torch.nn.Sequential(torch.nn.Linear(8, 8)), rankfold.config("lora", r=2, target_modules=["0"])
        ... )
        >>> [(group["name"], group["lr"]) for group in parameter_groups(model, lr=1e-4, loraplus_ratio=16)]
        [('down', 0.0001), ('up x16', 0.0016)]
    """
    check_positive("lr", lr)
    if not 0 <= weight_decay < float("inf"):
        raise SpecError(f"weight_decay is {weight_decay}; give 0 or a number above.")
    rates = Rates(
        tlora_ratio=tlora_ratio,
        per_module=per_module,
        base_role=base_role,
        loraplus_ratio=loraplus_ratio,
        embedding_lr=embedding_lr,
        groups=groups or {},
    )
    _check_adapter_name(model, adapter_name)
    collected: dict[tuple[int, float, float], list[nn.Parameter]] = {}
    for role, multiplier, parameter in _places(model, rates, lr, adapter_name):
        decay = weight_decay if parameter.ndim > 1 else 0.0
        collected.setdefault((_ORDER.index(role), multiplier, decay), []).append(parameter)
    _check_reached(rates, {_ORDER[index] for index, _, _ in collected})
    made = [_group(*key, lr, collected[key]) for key in sorted(collected)]
    logger.info("learning rates:\n%s", RateTable.of(made))
    return made


def optimizer(
    model: nn.Module,
    optimizer_class: Callable[..., _OptimizerT],
    *,
    lr: float,
    weight_decay: float = 0.0,
    **options: Any,
) -> _OptimizerT:
    """Return an optimiser of what a model trains, with learning rates by role.

    In a Trainer of transformers this is `optimizers=(rankfold.optimizer(model, ...), None)`. Its schedule
    scales the rate of every group; its own `learning_rate` and `weight_decay` have no effect then.

    Args:
        model: A model with rankfold adapters.
        optimizer_class: Any optimiser of torch that takes groups of parameters, such as `torch.optim.AdamW`.
        lr: The base learning rate.
        weight_decay: Of matrices; scales, biases and other vectors have none. The default of the class has no
            effect.
        **options: Those of `rankfold.parameter_groups`, and any that the class takes.

    Raises:
        SpecError: As for `rankfold.parameter_groups`, or if the class knows no weight decay and one is given.

    Examples:
        >>> import peft, rankfold, torch
        >>> model = peft.get_peft_model(
        ...     torch.nn.Sequential(torch.nn.Linear(8, 8)),
        ...     rankfold.config("tlora_plus", target_modules=["0"]),
        ... )
        >>> made = optimizer(model, torch.optim.AdamW, lr=5e-5, tlora_ratio=4, betas=(0.9, 0.99))
        >>> [group["name"] for group in made.param_groups]
        ['down', 'core x8', 'up x2']
    """
    ours = {name: options.pop(name) for name in _GROUP_OPTIONS & options.keys()}
    made = optimizer_class(
        parameter_groups(model, lr=lr, weight_decay=weight_decay, **ours), lr=lr, **options
    )
    if weight_decay and "weight_decay" not in made.defaults:
        raise SpecError(
            f"weight_decay={weight_decay} has no effect: {type(made).__name__} knows none; leave it out."
        )
    return made


def _check_adapter_name(model: nn.Module, adapter_name: str | None) -> None:
    known = {name for _, name, _ in adapters_in(model)}
    if not known:
        raise SpecError(
            "the model has no rankfold adapter whose parts could learn at different rates; "
            "add one with peft.get_peft_model."
        )
    if adapter_name is not None and adapter_name not in known:
        raise unknown_name("adapter", adapter_name, known)


def _places(
    model: nn.Module, rates: Rates, lr: float, adapter_name: str | None
) -> Iterator[tuple[str, float, nn.Parameter]]:
    """Yield every parameter that is trained, once, with its role and its multiple of the base rate."""
    places: dict[nn.Parameter, tuple[str, float]] = {}
    left_out: set[nn.Parameter] = set()
    for path, name, adapter in adapters_in(model):
        for role, parameter in _parts(adapter):
            if adapter_name not in (None, name):
                left_out.add(parameter)
                continue
            place = _place(rates, role, adapter, parameter, lr)
            if places.setdefault(parameter, place) != place:
                raise SpecError(
                    f"the {role} factor of '{path}' is shared with layers for which it would have another "
                    f"rate ({group_name(*places[parameter])} and {group_name(*place)}); "
                    "give the multiples by groups, or adapt only layers that agree."
                )
    head = HEAD, float(rates.groups.get(HEAD, 1.0))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter not in left_out:
            yield *places.get(parameter, head), parameter


def _parts(adapter: Adapter) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of an adapter that are trained, with their roles."""
    for role in ROLES:
        part: nn.Module | None = getattr(adapter, role)
        for parameter in () if part is None else part.parameters():
            if parameter.requires_grad:
                yield role, parameter


def _place(
    rates: Rates, role: str, adapter: Adapter, parameter: nn.Parameter, lr: float
) -> tuple[str, float]:
    """Return the role that a parameter of an adapter counts to, and its multiple of the base rate."""
    if rates.loraplus_ratio is not None:
        if isinstance(adapter.geometry, Embedding):
            return EMBEDDING, (rates.embedding_lr or _EMBEDDING_RATE) / lr
        is_fast = role == "up" or parameter.ndim == 1
        return role, float(rates.loraplus_ratio) if is_fast else 1.0
    if role in RATIO_POWERS and (rates.per_module or rates.tlora_ratio is not None):
        ratio = rates.tlora_ratio
        by_role = _rates_by_sizes(adapter) if ratio is None else _rates_by_ratio(ratio)
        return role, by_role[role] / by_role[rates.base_role]
    return role, float(rates.groups.get(role, 1.0))


def _rates_by_ratio(ratio: float) -> dict[str, float]:
    return {role: ratio**power for role, power in RATIO_POWERS.items()}


def _rates_by_sizes(adapter: Adapter) -> dict[str, float]:
    """Return TLoRA+'s rates for n inputs, m outputs and ranks r1 at the up and r2 at the down factor.

    down / core = r1 sqrt(r2) / (n sqrt(n)) and core / up = m sqrt(r1) / (r2 sqrt(r2)). For a square layer and
    one rank r these are the rates of the ratio n / r.
    """
    inputs, outputs = adapter.geometry.in_features, adapter.geometry.out_features
    rank = adapter.down.rows // adapter.down_heads
    rank_up = rank if adapter.core is None else adapter.core.rows
    core = inputs**1.5 / (rank_up * rank**0.5)
    return {"down": 1.0, "core": core, "up": core * rank**1.5 / (outputs * rank_up**0.5)}


def _check_reached(rates: Rates, reached: set[str]) -> None:
    """Refuse a multiple that changes nothing, which would look as if it had been tried."""
    if not reached:
        raise SpecError("nothing in the model is trained; make an adapter active with set_adapter.")
    missed = [role for role in _ORDER if role in rates.roles() - reached]
    if missed:
        present = ", ".join(f"'{role}'" for role in _ORDER if role in reached)
        raise SpecError(
            f"the rate asked for '{missed[0]}' reaches no parameter, since the model trains only {present}; "
            f"take a method that trains '{missed[0]}', or give multiples of what is trained alone."
        )


def _group(
    position: int, multiplier: float, decay: float, lr: float, parameters: list[nn.Parameter]
) -> dict[str, Any]:
    role = _ORDER[position]
    return {
        "params": parameters,
        "lr": lr * multiplier,
        "weight_decay": decay,
        "name": group_name(role, multiplier),
        "role": role,
        "multiplier": multiplier,
    }
