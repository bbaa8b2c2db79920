"""ReducerSpec: the options of a Reducer, validated."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, final, get_args

from rankfold.errors import SpecError, unknown_name

ScoreRule = Literal["reward", "loss_delta"]
"""How a probe moves importance: `reward` compares several suppressed sets with each other (IST's code);
`loss_delta` adds what suppressing cost (the paper's prose; with `lowest` it cannot rank layers)."""

SuppressSelect = Literal["sample", "lowest"]
"""Layers that a probe suppresses: sampled, unimportant ones more often; or always the least important."""

Select = Literal["importance", "random", "last", "all"]
"""Layers that train: sampled by importance; sampled uniformly; the last ones; or all of them, which only
measures importance."""

Freeze = Literal["up", "all"]
"""Frozen part of an inactive layer: its up factors, or the whole adapters."""

Mode = Literal["freeze", "drop"]
"""Inactive layers are frozen for the step, or switched off for the whole run."""

_ACTIVE_FRACTION, _SUPPRESS_FRACTION = 0.75, 0.5

_CHOICES: dict[str, tuple[str, ...]] = {
    "score_rule": get_args(ScoreRule),
    "suppress_select": get_args(SuppressSelect),
    "select": get_args(Select),
    "freeze": get_args(Freeze),
    "mode": get_args(Mode),
}
# Minima of the integers.
_MINIMA = {
    "active_layers": 1,
    "suppress_layers": 1,
    "interval": 1,
    "probes": 1,
    "resample_every": 1,
    "start_step": 0,
    "seed": 0,
}


_PROBE_OPTIONS = (
    "suppress_fraction",
    "suppress_layers",
    "suppress_factor",
    "interval",
    "probes",
    "learning_rate",
    "score_rule",
    "suppress_select",
    "start_step",
)
# Options that have no effect with the given value of another.
_WITHOUT_EFFECT: dict[tuple[str, str], tuple[str, ...]] = {
    ("select", "random"): _PROBE_OPTIONS,
    ("select", "last"): _PROBE_OPTIONS,
    ("select", "all"): ("active_fraction", "active_layers", "resample_every"),
    ("mode", "drop"): ("freeze", "resample_every"),
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReducerSpec:
    """The options of a `Reducer`. A layer is a transformer block.

    Args:
        active_fraction: The share of the layers that train in a step.
        active_layers: Their number, instead of their share.
        suppress_fraction: The share of the layers that a probe suppresses.
        suppress_layers: Their number, instead of their share.
        suppress_factor: The strength of a suppressed layer's adapters.
        interval: Steps between two rounds of probes.
        probes: Suppressed sets of a round, all different.
        learning_rate: How far a probe moves importance.
        score_rule: How a probe moves importance: `reward` (IST) or `loss_delta`.
        suppress_select: Which layers a probe suppresses: `sample` (IST) or `lowest`.
        select: Which layers train: `importance`, `random`, `last`, or `all` (only measures).
        mode: `freeze` the other layers, or `drop` them for the whole run.
        freeze: Frozen part of the other layers: `up` (EffiLoRA) or `all` (IST).
        stop_shared_gradient: Send no gradient through the adapters of frozen layers, not even to shared
            factors, which saves time and memory.
        fold_frozen: Add the adapters of frozen layers to copies of the layers' weights, without dropout,
            which saves time and costs the memory of these copies. Only with `stop_shared_gradient`; for
            linear layers in float32 and methods without a router.
        resample_every: Steps between two samples of the layers that train.
        start_step: First step with a probe; while all heads are zero, suppressing layers changes no loss.
        seed: Of all sampling.

    Raises:
        SpecError: If an option is out of range or unknown, options contradict each other, or one would
            have no effect.
    """

    active_fraction: float = _ACTIVE_FRACTION
    active_layers: int | None = None
    suppress_fraction: float = _SUPPRESS_FRACTION
    suppress_layers: int | None = None
    suppress_factor: float = 0.25
    interval: int = 10
    probes: int = 3
    learning_rate: float = 10.0
    score_rule: ScoreRule = "reward"
    suppress_select: SuppressSelect = "sample"
    select: Select = "importance"
    mode: Mode = "freeze"
    freeze: Freeze = "up"
    stop_shared_gradient: bool = False
    fold_frozen: bool = False
    resample_every: int = 1
    start_step: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every option, then their combination."""
        _check_names(self)
        _check_ranges(self)
        _check_combination(self)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "ReducerSpec":
        """Make a spec from a mapping of options.

        Raises:
            SpecError: If an option is unknown, out of range, or contradicts another.
        """
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                raise unknown_name("option of the Reducer", name, names)
        return cls(**options)

    @property
    def needs_probes(self) -> bool:
        """Whether importance is measured."""
        return self.select in ("importance", "all")

    @property
    def leaves_parameters_out(self) -> bool:
        """Whether some trainable parameters get no gradient in a step."""
        return self.stop_shared_gradient or self.mode == "drop"

    def active_count(self, layers: int) -> int:
        """Return how many of the layers train in a step.

        Raises:
            SpecError: If that is none of them, or more than there are.
        """
        return layers if self.select == "all" else _count(self, "active", layers)

    def suppressed_count(self, layers: int) -> int:
        """Return how many of the layers a probe suppresses.

        Raises:
            SpecError: If that is none of them, all of them, or more than there are.
        """
        count = _count(self, "suppress", layers)
        if count == layers:
            raise SpecError(
                f"a probe that suppresses all {layers} layers at once ranks none of them; "
                f"suppress at most {layers - 1}."
            )
        return count

    def with_uniform_sampling(self) -> "ReducerSpec":
        """Return the spec that trains as many layers, sampled uniformly, and so without options of probes."""
        defaults = {field.name: field.default for field in fields(self) if field.name in _PROBE_OPTIONS}
        options: dict[str, Any] = {**self.to_dict(), **defaults, "select": "random"}
        return ReducerSpec(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return asdict(self)


def _count(spec: ReducerSpec, name: str, layers: int) -> int:
    """Return a number of layers; a fraction is rounded down, with a tolerance for rounding errors."""
    number: int | None = getattr(spec, f"{name}_layers")
    if number is not None:
        if number > layers:
            raise SpecError(f"{name}_layers={number}, but the model has {layers} layers; give at most that.")
        return number
    fraction: float = getattr(spec, f"{name}_fraction")
    count = math.floor(fraction * layers + 1e-9)
    if count == 0:
        raise SpecError(
            f"{name}_fraction={fraction:g} of {layers} layers is none; give at least {1 / layers:.3g}."
        )
    return count


def _check_names(spec: ReducerSpec) -> None:
    for name, choices in _CHOICES.items():
        value = getattr(spec, name)
        if value not in choices:
            raise unknown_name(name, str(value), choices)
    for name in ("stop_shared_gradient", "fold_frozen"):
        if not isinstance(getattr(spec, name), bool):
            raise SpecError(f"{name} is '{getattr(spec, name)}'; give true or false.")


def _check_ranges(spec: ReducerSpec) -> None:
    for name in ("active_fraction", "suppress_fraction"):
        value = _number(spec, name)
        if not 0 < value <= 1:
            raise SpecError(f"{name}={value:g} is no share of the layers; give a number above 0, up to 1.")
    factor = _number(spec, "suppress_factor")
    if not 0 <= factor < 1:
        raise SpecError(f"suppress_factor={factor:g} suppresses nothing; give a number from 0 to below 1.")
    rate = _number(spec, "learning_rate")
    if not (rate > 0 and math.isfinite(rate)):
        raise SpecError(f"learning_rate={rate:g} of the Reducer is not possible; give a number above 0.")
    for name, minimum in _MINIMA.items():
        value = getattr(spec, name)
        if value is None and name.endswith("_layers"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise SpecError(f"{name} is '{value}'; give a whole number, at least {minimum}.")


def _number(spec: ReducerSpec, name: str) -> float:
    value = getattr(spec, name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SpecError(f"{name} is '{value}'; give a number.")
    try:
        return float(value)
    except OverflowError as error:
        raise SpecError(f"{name} is larger than any number of a processor; give a smaller one.") from error


def _check_combination(spec: ReducerSpec) -> None:
    for name, default in (("active", _ACTIVE_FRACTION), ("suppress", _SUPPRESS_FRACTION)):
        number, fraction = getattr(spec, f"{name}_layers"), getattr(spec, f"{name}_fraction")
        if number is not None and fraction != default:
            raise SpecError(
                f"{name}_layers={number} and {name}_fraction={fraction:g} are both given; give one of them."
            )
    if spec.mode == "drop" and spec.needs_probes:
        raise SpecError(
            f"mode='drop' chooses layers before training, when select='{spec.select}' has no importance yet; "
            "use select='random' or 'last'."
        )
    if spec.fold_frozen and not (spec.stop_shared_gradient and spec.mode == "freeze"):
        raise SpecError(
            "fold_frozen=True is for layers that get no gradient at all and still act; give "
            "stop_shared_gradient=True and mode='freeze' with it."
        )
    _check_unused(spec)
    if not spec.needs_probes or spec.score_rule != "reward":
        return
    if spec.suppress_select == "lowest":
        raise SpecError(
            "score_rule='reward' compares several suppressed sets, but suppress_select='lowest' gives only "
            "one; use suppress_select='sample' or score_rule='loss_delta'."
        )
    if spec.probes == 1:
        raise SpecError("probes=1 leaves score_rule='reward' nothing to compare; give at least 2.")


def _check_unused(spec: ReducerSpec) -> None:
    """Refuse an option that is not at its default where it has no effect."""
    defaults = {field.name: field.default for field in fields(spec)}
    for (option, value), names in _WITHOUT_EFFECT.items():
        for name in names if getattr(spec, option) == value else ():
            if getattr(spec, name) != defaults[name]:
                raise SpecError(
                    f"{name}={getattr(spec, name)} has no effect with {option}='{value}'; leave it out."
                )
