"""Step times of variants relative to the reference's, stored in `speed.json` beside the records."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from pydantic import TypeAdapter, ValidationError

from rankfold.errors import DataError
from rankfold.files import write_into

NAME = "speed.json"


@final
@dataclass(frozen=True, slots=True)
class StepTime:
    """A row of a suite beside its reference.

    Args:
        model: The base model.
        task: The task whose rows are the batch, as records call it.
        label: The row.
        reference: The row it is held against, the first of the suite.
        ratio: Its time of a step by the reference's: the median over the rounds.
        low: Lower end of the 95 % interval of the median, by the bootstrap over rounds.
        high: Upper end.
        rounds: How often each took its turn.
        hardware: What it was measured on.
        asked: A hash of what both rows are; measured before there was one if empty.
    """

    model: str
    task: str
    label: str
    reference: str
    ratio: float
    low: float
    high: float
    rounds: int
    hardware: str
    asked: str = ""


def read_step_times(folder: Path) -> list[StepTime]:
    """Return the step times in a folder; none if there is no file.

    Raises:
        DataError: If the file is damaged.
    """
    file = folder / NAME
    try:
        return _adapter().validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise DataError(
            f"cannot read '{file}'; delete it, and measure again with `rankfold bench speed`."
        ) from error


def write_step_times(times: Sequence[StepTime], folder: Path) -> None:
    """Write step times into the folder of a suite's runs."""
    write_into(folder, NAME, _adapter().dump_json(list(times), indent=1) + b"\n")


@cache
def _adapter() -> TypeAdapter[list[StepTime]]:
    return TypeAdapter(list[StepTime])
