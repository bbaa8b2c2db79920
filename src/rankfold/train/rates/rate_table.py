"""The table of learning rates: what a training's groups of parameters are, without the parameters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

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
