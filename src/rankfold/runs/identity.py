"""Whether two requests ask for the same run, and in what they differ."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import cast

from pydantic import JsonValue

from rankfold.runs.record import RunRecord
from rankfold.runs.request import DEFAULT_EPOCHS, RunRequest

# Where a run is and what it runs on, how it is begun, watched and kept: none of these makes it another run.
FREE = frozenset(
    {"out", "data_root", "threads", "device", "overwrite", "resume", "checkpoint_every", "validate"},
)
_NAMED = 3

Question = dict[str, JsonValue]
"""What is asked for, by the names of `RunRequest`."""


def question_of(request: RunRequest) -> Question:
    """Return what a run is to find out: the same for the same run, wherever and however it is made."""
    values = cast("Question", json.loads(json.dumps(asdict(request), default=str)))
    if request.epochs is None and request.steps is None:
        values["epochs"] = DEFAULT_EPOCHS
    return {name: value for name, value in values.items() if name not in FREE}


def asked_with_any_seed(record: RunRecord) -> str:
    """Return what a run was asked to find out: the same for all seeds of a row.

    Raises:
        DataError: If another version of rankfold wrote its command, and this one cannot read it.
    """
    asked = question_of(RunRequest.of_command(record.command))
    return json.dumps({**asked, "seed": None}, sort_keys=True)


def differences(then: JsonValue, now: JsonValue, name: str = "") -> Iterator[str]:
    """Yield what differs between two JSON values, by its path: "options.r was 4 and is 8"."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif then != now:
        yield f"{name} was {json.dumps(then)} and is {json.dumps(now)}"


def listed(changed: Sequence[str]) -> str:
    """Return the first few differences in words, and how many more there are."""
    more = len(changed) - _NAMED
    return ", ".join(changed[:_NAMED]) + (f", and {more} more" if more > 0 else "")
