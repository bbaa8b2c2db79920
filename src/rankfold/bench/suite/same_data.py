"""A comparison goes on only with the data with which it began."""

from collections.abc import Sequence

from rankfold.errors import DataError, RankfoldError
from rankfold.models.base import resolve_model
from rankfold.runs.record import Measured, RunRecord, measured_on
from rankfold.runs.request import RunRequest
from rankfold.tasks import TaskRequest, load_task

_DIGITS = 8


def check_same_data(asked: Sequence[tuple[RunRequest, RunRecord | None]]) -> None:
    """Check that runs which are still to do will see the data of those that are done already.

    Args:
        asked: All runs of a comparison and what they are built on, such as trials, with their records; None
            if one is still to do.

    Raises:
        DataError: If the data of a task, or its version, has changed since a run was done.
    """
    first: dict[TaskRequest, tuple[RunRequest, RunRecord]] = {}
    for request, record in asked:
        if record is not None:
            _, began = first.setdefault(request.task_request, (request, record))
            _check(began, measured_on(record), f"when '{request.out}' was run")
    if any(record is None for _, record in asked):
        for request, record in first.values():
            _check(record, _now(request), "now")


def _now(request: RunRequest) -> Measured | None:
    """Return what a run would be measured on; None if that cannot be read, which the run itself will say."""
    try:
        data = load_task(request.task_request, is_causal=resolve_model(request.model).is_causal)
    except RankfoldError:
        return None
    return data.sha256, data.task.version or 1


def _check(first: RunRecord, other: Measured | None, when: str) -> None:
    (rows, version), task = measured_on(first), first.task.name
    if other is None or other == (rows, version):
        return
    if other[1] != version:
        changed = f"the task '{task}' had version {version} when it was first run, and has {other[1]} {when}"
    else:
        changed = (
            f"the data of '{task}' had the hash {rows[:_DIGITS]} when it was first run, "
            f"and has {other[0][:_DIGITS]} {when}"
        )
    raise DataError(
        f"{changed}; what was measured on different data is not mixed, so add --overwrite to run everything "
        "again, choose another --out, or bring the data back."
    )
