"""How a run came by its settings: the parts of a record that speak of other runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class FitPart:
    """The place of a run in a choice by `rankfold fit`.

    Args:
        budget: What every composition had to keep to, in words.
        steps: Updates of each rung.
        rung: The run's rung, from 1.
        kept: How many runs of the rung went on; 1 in the last, the chosen one.
        role: Whether it could be chosen, or is what the chosen one is held against.
    """

    budget: str
    steps: tuple[int, ...]
    rung: int
    kept: int
    role: Literal["candidate", "reference"] = "candidate"


@dataclass(frozen=True, slots=True)
class TuningPart:
    """How a run came by its settings, or what it tries for others.

    Args:
        trials: How many were made for the method on this task and model.
        trial: Which of them the run is, from 1; None for a run with what was chosen.
        values: What is tried, or was chosen.
        score: The metric of the chosen trial on rows cut from the training split; None if all of them failed.
    """

    trials: int
    trial: int | None
    values: Mapping[str, JsonValue]
    score: float | None = None
