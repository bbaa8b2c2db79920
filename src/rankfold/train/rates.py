"""How the learning rates of an adapter's parts differ, as a value: TLoRA+, LoRA+ or free multiples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, final

from rankfold.adapter import ROLES
from rankfold.errors import SpecError, unknown_name

HEAD = "head"
"""The role of everything that is trained outside adapters, such as a new classification head."""

EMBEDDING = "embedding"
"""The role of an embedding's adapter in LoRA+, where it has a rate of its own."""

RATIO_POWERS = {"down": 0.0, "core": 1.5, "up": 0.5}
"""TLoRA+, eq. 8: a role's rate is the ratio to this power; down : core : up = 1 : ratio^1.5 : ratio^0.5."""

_WAYS = ("tlora_ratio", "per_module", "loraplus_ratio", "groups")
_LARGEST = 1e9  # far above any rate that trains, and safe to take powers of


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Which multiple of the base learning rate each part of an adapter has; by default one.

    There are four ways to ask for others, of which one can be taken: `tlora_ratio`, `per_module`,
    `loraplus_ratio` and `groups`.

    Args:
        tlora_ratio: The ratio of TLoRA+ (Cao and Liu, 2026, eq. 8): down : core : up = 1 : ratio^1.5 :
            ratio^0.5.
        per_module: TLoRA+ before it is simplified to a ratio: the sizes of each layer say how far the rates
            of its factors are apart.
        base_role: Which of `down`, `core` and `up` has the base rate in TLoRA+.
        loraplus_ratio: The ratio of LoRA+ (Hayou et al., 2024, arXiv:2402.12354): the up factor, and vectors
            such as a learned scale, have this multiple.
        embedding_lr: In LoRA+, the learning rate of adapters on embeddings; 1e-6 if None.
        groups: Multiples by role: `down`, `core`, `up`, `scale`, `router`, and `head` for what is trained
            outside adapters. A role that is not named has the base rate.

    Raises:
        SpecError: If a number is not above 0, a role is unknown, or options do not go together.
    """

    tlora_ratio: float | None = None
    per_module: bool = False
    base_role: str = "down"
    loraplus_ratio: float | None = None
    embedding_lr: float | None = None
    groups: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """Check every number and role, then that they go together."""
        for name in ("tlora_ratio", "loraplus_ratio", "embedding_lr"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for role, multiple in self.groups.items():
            if role not in (*ROLES, HEAD):
                raise unknown_name("role", role, (*ROLES, HEAD))
            check_positive(f"the multiple of '{role}'", multiple)
        if self.base_role not in RATIO_POWERS:
            raise unknown_name("base role", self.base_role, RATIO_POWERS)
        self._check_that_options_go_together()

    def _check_that_options_go_together(self) -> None:
        ways = [name for name in _WAYS if name in self.asked()]
        if len(ways) > 1:
            raise SpecError(f"{' and '.join(ways)} each set the learning rates; give one of them.")
        if "base_role" in self.asked() and not {"tlora_ratio", "per_module"} & {*ways}:
            raise SpecError(
                f"base_role='{self.base_role}' is TLoRA+'s; give it with tlora_ratio or per_module."
            )
        if self.embedding_lr is not None and self.loraplus_ratio is None:
            raise SpecError(f"embedding_lr={self.embedding_lr} is LoRA+'s; give it with loraplus_ratio.")

    def asked(self) -> dict[str, Any]:
        """Return the options that are not at their default, by name."""
        # The default of `groups` is made anew each time, so it is no field's `default`.
        values = {each: getattr(self, each.name) for each in fields(self)}
        return {each.name: value for each, value in values.items() if value not in (each.default, {})}

    def roles(self) -> set[str]:
        """Return the roles that are to have another rate than the base: each must be there to be trained."""
        if self.per_module or self.tlora_ratio not in (None, 1):
            return RATIO_POWERS.keys() - {self.base_role} | {"core"}  # without a core it would not be TLoRA+
        if self.loraplus_ratio is not None:
            embedding = set[str]() if self.embedding_lr is None else {EMBEDDING}
            return embedding if self.loraplus_ratio == 1 else {"up", *embedding}
        return {role for role, multiple in self.groups.items() if multiple != 1}


def check_positive(name: str, value: object) -> None:
    """Refuse what is not a number above 0.

    Raises:
        SpecError: If it is not.
    """
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0 < value < _LARGEST):
        raise SpecError(f"{name} is {value!r}; give a number above 0, and below {_LARGEST:g}.")


COLUMNS = ("group", "learning rate", "tensors", "numbers", "weight decay")


@final
@dataclass(frozen=True, slots=True)
class RateGroup:
    """One group of parameters.

    Args:
        role: What they are: down, core, up, ...; `head` outside adapters, `embedding` in LoRA+.
        multiplier: Their learning rate as a multiple of the base rate.
        learning_rate: Their highest learning rate.
        weight_decay: Their weight decay.
        tensors: How many they are.
        numbers: How many numbers they hold.
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
    """The groups of a training; print it to see them as a table.

    Args:
        groups: One for each role, learning rate and weight decay.
    """

    groups: tuple[RateGroup, ...]

    @classmethod
    def of(cls, groups: Iterable[Mapping[str, Any]]) -> "RateTable":
        """Return the table of what `rankfold.parameter_groups` gave, or of an optimiser's `param_groups`."""
        return cls(tuple(_described(group) for group in groups))

    def __str__(self) -> str:
        """Return the table as lines of text."""
        rows = [COLUMNS, *(group.cells() for group in self.groups)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        return "\n".join(_line(row, widths) for row in rows)


def group_name(role: str, multiplier: float) -> str:
    """Return the role, with the multiplier where it is not 1, as in "up x2.83"."""
    return role if multiplier == 1 else f"{role} x{multiplier:.3g}"


def _described(group: Mapping[str, Any]) -> RateGroup:
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
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])
