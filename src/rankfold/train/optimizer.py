"""Optimisers with learning rates by role: parameter groups, and LoRA-FA's gradient correction."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rankfold.adapter import ROLES
from rankfold.adapter.geometry import Embedding
from rankfold.adapter.module import Adapter, adapters_in
from rankfold.errors import SpecError, unknown_name
from rankfold.factors import Dense
from rankfold.train.schedule import (
    EMBEDDING,
    HEAD,
    RATIO_POWERS,
    Rates,
    RateTable,
    check_positive,
    group_name,
)

logger = logging.getLogger("rankfold.train")

_OptimizerT = TypeVar("_OptimizerT", bound=Optimizer)

_ORDER = (*ROLES, EMBEDDING, HEAD)
_GROUP_OPTIONS = {"adapter_name", *(option.name for option in fields(Rates))}
_EMBEDDING_RATE = 1e-6


def parameter_groups(  # noqa: PLR0913 (four rules, each with its options)
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
    """Group the trainable parameters of a model for a torch optimiser, each group with its learning rate.

    By default every group has the rate `lr`; give one of `tlora_ratio`, `per_module`, `loraplus_ratio` and
    `groups` for others. Trainable parameters outside adapters, such as a new task head, are a group at the
    base rate. Beside the keys that optimisers read, a group has `name`, `role` and `multiplier`. The table of
    groups is logged.

    Args:
        model: A model with rankfold adapters.
        lr: The base learning rate.
        tlora_ratio: TLoRA+: down : core : up = 1 : ratio^1.5 : ratio^0.5.
        loraplus_ratio: LoRA+: the up factor, and vectors such as a learned scale, at this multiple.
        groups: Free multiples by role: `down`, `core`, `up`, `scale`, `router` and `head`; the others have 1.
        per_module: TLoRA+ with the sizes of each layer in place of a ratio.
        base_role: In TLoRA+, the one of `down`, `core` and `up` that has the base rate.
        embedding_lr: In LoRA+, the learning rate of adapters on embeddings; 1e-6 if None.
        weight_decay: Of matrices; scales, biases and other vectors have none.
        adapter_name: Only this adapter; all trainable adapters if None.

    Raises:
        SpecError: If a number, role or adapter name is not possible, options contradict each other, layers
            that share a factor need different rates, or a multiple is for a role that is not trained.

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
    parameters_of: dict[tuple[int, float, float], list[nn.Parameter]] = {}
    for role, multiplier, parameter in _assign_roles(model, rates, lr, adapter_name):
        decay = weight_decay if parameter.ndim > 1 else 0.0
        parameters_of.setdefault((_ORDER.index(role), multiplier, decay), []).append(parameter)
    _check_coverage(rates, {_ORDER[index] for index, _, _ in parameters_of})
    param_groups = [_group(*key, lr, parameters_of[key]) for key in sorted(parameters_of)]
    logger.info("learning rates:\n%s", RateTable.of(param_groups))
    return param_groups


def optimizer(
    model: nn.Module,
    optimizer_class: Callable[..., _OptimizerT],
    *,
    lr: float,
    weight_decay: float = 0.0,
    **options: Any,
) -> _OptimizerT:
    """Make an optimiser for the trainable parameters of a model, with learning rates by role.

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
    group_options = {name: options.pop(name) for name in _GROUP_OPTIONS & options.keys()}
    instance = optimizer_class(
        parameter_groups(model, lr=lr, weight_decay=weight_decay, **group_options), lr=lr, **options
    )
    if weight_decay and "weight_decay" not in instance.defaults:
        raise SpecError(
            f"weight_decay={weight_decay} has no effect: {type(instance).__name__} has none; leave it out."
        )
    return instance


def _check_adapter_name(model: nn.Module, adapter_name: str | None) -> None:
    names = {name for _, name, _ in adapters_in(model)}
    if not names:
        raise SpecError(
            "the model has no rankfold adapter whose parts could learn at different rates; "
            "add one with peft.get_peft_model."
        )
    if adapter_name is not None and adapter_name not in names:
        raise unknown_name("adapter", adapter_name, names)


def _assign_roles(
    model: nn.Module, rates: Rates, lr: float, adapter_name: str | None
) -> Iterator[tuple[str, float, nn.Parameter]]:
    """Yield every trainable parameter once, with its role and its multiple of the base rate."""
    assignments: dict[nn.Parameter, tuple[str, float]] = {}
    other_adapters: set[nn.Parameter] = set()
    for path, name, adapter in adapters_in(model):
        for role, parameter in _trainable_parameters(adapter):
            if adapter_name not in (None, name):
                other_adapters.add(parameter)
                continue
            assignment = _role_and_multiplier(rates, role, adapter, parameter, lr)
            if assignments.setdefault(parameter, assignment) != assignment:
                raise SpecError(
                    f"the {role} factor of '{path}' is shared with layers for which it would have another "
                    f"rate ({group_name(*assignments[parameter])} and {group_name(*assignment)}); "
                    "give the multiples by groups, or adapt only layers that agree."
                )
    head = HEAD, float(rates.groups.get(HEAD, 1.0))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter not in other_adapters:
            yield *assignments.get(parameter, head), parameter


def _trainable_parameters(adapter: Adapter) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trainable parameters of an adapter with their roles."""
    for role in ROLES:
        part: nn.Module | None = getattr(adapter, role)
        for parameter in () if part is None else part.parameters():
            if parameter.requires_grad:
                yield role, parameter


def _role_and_multiplier(
    rates: Rates, role: str, adapter: Adapter, parameter: nn.Parameter, lr: float
) -> tuple[str, float]:
    """Return the role of an adapter's parameter, and its multiple of the base learning rate."""
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


def _check_coverage(rates: Rates, trained_roles: set[str]) -> None:
    """Refuse a multiple for a role without trainable parameters."""
    if not trained_roles:
        raise SpecError("the model has no trainable parameter; make an adapter active with set_adapter.")
    missing = [role for role in _ORDER if role in rates.roles() - trained_roles]
    if missing:
        present = ", ".join(f"'{role}'" for role in _ORDER if role in trained_roles)
        raise SpecError(
            f"the learning rate for '{missing[0]}' applies to no parameter, since the model trains only "
            f"{present}; use a method that trains '{missing[0]}', or leave that rate out."
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


def lora_fa_correction(model: nn.Module, optimizer: Optimizer, *, delta: float = 1e-8) -> RemovableHandle:
    """LoRA-FA: correct the gradients of adapters with a frozen down factor before every optimiser step.

    The gradient G of the up factor becomes G (V V^T + delta I)^-1 / s^2, with the frozen factor V and the
    adapter's scaling s (Zhang et al., 2023, arXiv:2308.03303, revision of 2026). With plain gradient descent
    the weight then moves by the gradient of full training, projected on the rows of V.

    The correction acts after gradient clipping and scales gradients by the order of 1 / s^2: tune the
    learning rate anew.

    Args:
        model: Its trainable adapters must have a frozen down factor, a dense up factor of their own, and no
            core or learned scale.
        optimizer: The optimiser to correct.
        delta: Keeps the inverse finite.

    Returns:
        A handle; its `remove` ends the correction.

    Raises:
        SpecError: If a trainable adapter has other factors, or there is none.

    Example:
        >>> import peft, rankfold, torch
        >>> model = peft.get_peft_model(
        ...     torch.nn.Sequential(torch.nn.Linear(8, 8)), rankfold.config("lora_fa", target_modules=["0"])
        ... )
        >>> made = rankfold.optimizer(model, torch.optim.AdamW, lr=1e-3)
        >>> handle = lora_fa_correction(model, made)
    """
    inverses = {
        parameter: (adapter, _inverse_gram(adapter, delta).to(parameter))
        for adapter, parameter in _trainable_up_factors(model)
    }
    if not inverses:
        raise SpecError("no adapter of the model is trained; make one active with set_adapter.")

    @torch.no_grad()
    def correct(*_: Any) -> None:
        for parameter, (adapter, inverse) in inverses.items():
            if parameter.grad is not None:
                scaling = adapter.scaling * adapter.strength
                parameter.grad.copy_(parameter.grad @ inverse.to(parameter.grad) / scaling**2)

    return optimizer.register_step_pre_hook(correct)


def _trainable_up_factors(model: nn.Module) -> Iterator[tuple[Adapter, nn.Parameter]]:
    """Yield the trainable adapters with the parameter of their up factor."""
    visited_ups: set[nn.Parameter] = set()
    for path, name, adapter in adapters_in(model):
        parameters = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
        if not parameters:
            continue
        up = adapter.up
        is_supported = adapter.down.is_frozen and isinstance(up, Dense) and up.cols == adapter.down.rows
        has_more = adapter.core is not None or adapter.router is not None or len(parameters) > 1
        if not is_supported or has_more or parameters[0] in visited_ups:
            raise SpecError(
                f"the adapter '{name}' of '{path}' is not a dense up factor of its own beside a frozen down "
                "factor, and LoRA-FA's correction is defined for nothing else; leave it out."
            )
        visited_ups.add(parameters[0])
        yield adapter, parameters[0]


def _inverse_gram(adapter: Adapter, delta: float) -> Tensor:
    """Return (V V^T + delta I)^-1; V does not change, so this is done once, on the CPU in float64."""
    down = adapter.down().cpu().double()
    return (down @ down.mT + delta * torch.eye(adapter.down.rows, dtype=torch.float64)).inverse()
