"""Training schedule and learning rates by role (TLoRA+, LoRA+), as values that need no torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, final

from rankfold.adapter import ROLES
from rankfold.errors import SpecError, unknown_name

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
"""Schedulers of transformers whose only parameters are those of a `Schedule`."""

OptimizerName = Literal[
    "adamw",
    "adamw_8bit",
    "paged_adamw_8bit",
    "lion_8bit",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
]
"""Optimisers of transformers that take parameter groups and whose state is in checkpoints."""

Moments = Literal["auto", "epochs", "end"]
"""When held-out rows are measured."""

QUANTISED_OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit", "lion_8bit")
"""Optimisers of the package bitsandbytes."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Number of steps, batch size, learning rate over time, and precision of a training.

    Args:
        steps: Number of updates.
        batch_size: Rows of a batch, over all processes.
        learning_rate: The peak.
        scheduler: Shape of the learning rate after the warm-up.
        warmup: Share of the steps in which the rate rises from zero.
        weight_decay: The optimiser's.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them as they are.
        precision: `fp32` or `bf16`.
        seed: Of data order and dropout.
        optimizer: One of `OptimizerName`.
        accumulation: Batches of an update, whose loss is the mean over all of them.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        compiles: Compile the model's training step with `torch.compile`.
        groups_lengths: Make batches of rows of similar length.
    """

    steps: int
    batch_size: int
    learning_rate: float
    scheduler: Scheduler = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "fp32"
    seed: int = 0
    optimizer: OptimizerName = "adamw"
    accumulation: int = 1
    gradient_checkpointing: bool = False
    compiles: bool = False
    groups_lengths: bool = False

    def epochs(self, rows: int) -> float:
        """Return the passes over a number of rows that the steps are."""
        return self.steps / updates_of_epoch(rows, self.batch_size, self.accumulation)


def updates_of_epoch(rows: int, batch_size: int, accumulation: int = 1) -> int:
    """Return the updates of one pass over a number of rows; the last one may have fewer rows."""
    return math.ceil(math.ceil(rows / batch_size) / accumulation)


HEAD = "head"
"""The role of everything that is trained outside adapters, such as a new classification head."""

EMBEDDING = "embedding"
"""The role of an embedding's adapter in LoRA+, where it has a rate of its own."""

RATIO_POWERS = {"down": 0.0, "core": 1.5, "up": 0.5}
"""TLoRA+, eq. 8: a role's rate is the ratio to this power; down : core : up = 1 : ratio^1.5 : ratio^0.5."""

_RULES = ("tlora_ratio", "per_module", "loraplus_ratio", "groups")
_MAX_RATE = 1e9  # far above any rate that trains, and safe to take powers of


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Multiples of the base learning rate for each role of an adapter; 1 by default.

    Four rules set other multiples, one at a time: `tlora_ratio`, `per_module`, `loraplus_ratio` and `groups`.

    Args:
        tlora_ratio: The ratio of TLoRA+ (Cao and Liu, 2026, eq. 8): down : core : up = 1 : ratio^1.5 :
            ratio^0.5.
        per_module: TLoRA+ before its simplification to a ratio: the rates follow from the sizes of each
            layer.
        base_role: The one of `down`, `core` and `up` that has the base rate in TLoRA+.
        loraplus_ratio: The ratio of LoRA+ (Hayou et al., 2024, arXiv:2402.12354): the up factor, and vectors
            such as a learned scale, have this multiple.
        embedding_lr: In LoRA+, the learning rate of adapters on embeddings; 1e-6 if None.
        groups: Multiples by role: `down`, `core`, `up`, `scale`, `router`, and `head` for what is trained
            outside adapters. A role that is not named has the base rate.

    Raises:
        SpecError: If a number is not above 0, a role is unknown, or options contradict each other.
    """

    tlora_ratio: float | None = None
    per_module: bool = False
    base_role: str = "down"
    loraplus_ratio: float | None = None
    embedding_lr: float | None = None
    groups: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """Check every number and role, then their combination."""
        for name in ("tlora_ratio", "loraplus_ratio", "embedding_lr"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for role, multiple in self.groups.items():
            if role not in (*ROLES, HEAD):
                raise unknown_name("role", role, (*ROLES, HEAD))
            check_positive(f"the multiple of '{role}'", multiple)
        if self.base_role not in RATIO_POWERS:
            raise unknown_name("base role", self.base_role, RATIO_POWERS)
        self._check_combination()

    def _check_combination(self) -> None:
        rules = [name for name in _RULES if name in self.non_default()]
        if len(rules) > 1:
            raise SpecError(f"{' and '.join(rules)} each set the learning rates; give one of them.")
        if "base_role" in self.non_default() and not {"tlora_ratio", "per_module"} & {*rules}:
            raise SpecError(
                f"base_role='{self.base_role}' is TLoRA+'s; give it with tlora_ratio or per_module."
            )
        if self.embedding_lr is not None and self.loraplus_ratio is None:
            raise SpecError(f"embedding_lr={self.embedding_lr} is LoRA+'s; give it with loraplus_ratio.")

    def non_default(self) -> dict[str, Any]:
        """Return the options that are not at their default, by name."""
        # `groups` has a default factory, so its field has no `default`.
        values = {option: getattr(self, option.name) for option in fields(self)}
        return {option.name: value for option, value in values.items() if value not in (option.default, {})}

    def roles(self) -> set[str]:
        """Return the roles with another rate than the base; the model must train every one of them."""
        if self.per_module or self.tlora_ratio not in (None, 1):
            return RATIO_POWERS.keys() - {self.base_role} | {"core"}  # without a core it would not be TLoRA+
        if self.loraplus_ratio is not None:
            embedding = set[str]() if self.embedding_lr is None else {EMBEDDING}
            return embedding if self.loraplus_ratio == 1 else {"up", *embedding}
        return {role for role, multiple in self.groups.items() if multiple != 1}


def check_positive(name: str, value: object) -> None:
    """Check that a value is a number above 0.

    Raises:
        SpecError: If it is not.
    """
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0 < value < _MAX_RATE):
        raise SpecError(f"{name} is {value!r}; give a number above 0, and below {_MAX_RATE:g}.")


COLUMNS = ("group", "learning rate", "tensors", "parameters", "weight decay")


@final
@dataclass(frozen=True, slots=True)
class RateGroup:
    """One group of parameters.

    Args:
        role: Role of the parameters: down, core, up, ...; `head` outside adapters, `embedding` in LoRA+.
        multiplier: Their learning rate as a multiple of the base rate.
        learning_rate: Their peak learning rate.
        weight_decay: Their weight decay.
        tensors: Number of tensors.
        numbers: Number of their elements.
    """

    role: str
    multiplier: float
    learning_rate: float
    weight_decay: float
    tensors: int
    numbers: int

    @property
    def name(self) -> str:
        """The role, with the multiplier where it is not 1."""
        return group_name(self.role, self.multiplier)

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the table's columns."""
        numbers = (f"{self.learning_rate:.3g}", f"{self.tensors:,}", f"{self.numbers:,}")
        return self.name, *numbers, f"{self.weight_decay:g}"


@final
@dataclass(frozen=True, slots=True)
class RateTable:
    """Parameter groups with their learning rates; print it for a table.

    Args:
        groups: One for each role, learning rate and weight decay.
    """

    groups: tuple[RateGroup, ...]

    @classmethod
    def of(cls, groups: Iterable[Mapping[str, Any]]) -> "RateTable":
        """Make a table of the groups of `rankfold.parameter_groups`, or of an optimiser's `param_groups`."""
        return cls(tuple(_rate_group(group) for group in groups))

    def __str__(self) -> str:
        """Return the table as lines of text."""
        rows = [COLUMNS, *(group.cells() for group in self.groups)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        return "\n".join(_line(row, widths) for row in rows)


def group_name(role: str, multiplier: float) -> str:
    """Return the role, with the multiplier where it is not 1, as in "up x2.83"."""
    return role if multiplier == 1 else f"{role} x{multiplier:.3g}"


def _rate_group(group: Mapping[str, Any]) -> RateGroup:
    parameters = group["params"]
    return RateGroup(
        role=group["role"],
        multiplier=group["multiplier"],
        # A scheduler keeps the rate that it multiplies beside the one of the moment.
        learning_rate=group.get("initial_lr", group["lr"]),
        weight_decay=group["weight_decay"],
        tensors=len(parameters),
        numbers=sum(parameter.numel() for parameter in parameters),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    (name, name_width), *columns = zip(cells, widths, strict=True)
    return "  ".join([name.ljust(name_width), *(cell.rjust(width) for cell, width in columns)])
