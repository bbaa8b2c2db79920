"""What the runs of a suite would take, before any of them is made."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

from rankfold.bench.estimates.estimate import Device, Estimate, Estimator, decides_a_step
from rankfold.errors import DataError, SpecError
from rankfold.models.meta import generates_text
from rankfold.progress import Progress
from rankfold.runs.request import RunRequest
from rankfold.tasks import NAMED, TaskRequest, load_task
from rankfold.tasks.mixture import SEPARATOR

# Beside what decides a step: how many there are, of how long rows, in which numbers.
_DECISIVE = ("task", "data", "kind", "epochs", "steps", "max_length", "precision", "train_rows", "hold_out")


@dataclass(frozen=True, slots=True)
class PlannedRuns:
    """Runs that would take the same, such as those of several seeds.

    Args:
        request: The first of them.
        runs: How many they are.
        estimate: What each of them would take; None if that cannot be said.
        reason: Why it cannot.
    """

    request: RunRequest
    runs: int
    estimate: Estimate | None
    reason: str | None = None

    @property
    def hours(self) -> float | None:
        """How long they would train, one after the other; None if that cannot be said."""
        return None if self.estimate is None else self.runs * self.estimate.hours


def plan_runs(
    requests: Iterable[RunRequest], *, device: Device | None = None, progress: Progress | None = None
) -> list[PlannedRuns]:
    """Return what runs would take, in the order in which each kind of run comes first.

    Data that is of no named task is read, for the number of its rows.

    Args:
        requests: The runs.
        device: What would train; an A100 if None.
        progress: Is told about every kind of run.
    """
    alike: dict[str, list[RunRequest]] = {}
    for request in requests:
        alike.setdefault(_key(request), []).append(request)
    if progress:
        progress.start(len(alike), "estimates")
    estimator, count_own = Estimator(device), cache(_own_rows)
    planned: list[PlannedRuns] = []
    for done, group in enumerate(alike.values(), start=1):
        planned.append(_planned(group[0], len(group), estimator, count_own))
        if progress:
            progress.advance(done)
    if progress:
        progress.finish()
    return planned


def _planned(
    request: RunRequest, runs: int, estimator: Estimator, count_own: Callable[[TaskRequest, str], int]
) -> PlannedRuns:
    try:
        rows = None if _is_counted(request) else count_own(request.task_request, request.model)
        return PlannedRuns(request, runs, estimator.estimate(request, rows=rows))
    except (SpecError, DataError) as error:
        return PlannedRuns(request, runs, None, str(error))


def _is_counted(request: RunRequest) -> bool:
    """Return whether the estimate knows the rows of what is learned, or there is nothing to count."""
    names = request.task.split(SEPARATOR) if request.task else []
    return request.data is None and all(name in NAMED for name in names)


def _own_rows(request: TaskRequest, model: str) -> int:
    """Return the rows of the training split, of which the estimate takes what is held out away by itself."""
    data = load_task(replace(request, holds_out=False), is_causal=generates_text(model))
    return data.examples.counts["train"]


def _key(request: RunRequest) -> str:
    return json.dumps([*decides_a_step(request), *(getattr(request, name) for name in _DECISIVE)])
