"""How long the runs that are left will take, from those that are done."""

from collections.abc import Sequence
from statistics import mean

from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest


def seconds_left(
    left: Sequence[RunRequest], done: Sequence[tuple[RunRequest, RunRecord]], jobs: int
) -> float | None:
    """Return an estimate of the seconds until all are done, or None while nothing can be said.

    A run is expected to take what those of the same model, task and length took, or all of them where there
    is none; several at once are expected to share the work evenly.

    Args:
        left: What is still to do, runs under way included.
        done: What is done, with its record.
        jobs: How many runs are under way at once.
    """
    took = [
        (request, record.seconds.total)
        for request, record in done
        if record.status == "done" and record.seconds.total > 0
    ]
    if not took:
        return None
    whole = mean(seconds for _, seconds in took)

    def expected(request: RunRequest) -> float:
        alike = [seconds for other, seconds in took if _length(other) == _length(request)]
        return mean(alike) if alike else whole

    return sum(map(expected, left)) / min(jobs, max(1, len(left)))


def _length(request: RunRequest) -> tuple[object, ...]:
    return (request.model, request.task, request.data, request.epochs, request.steps, request.train_rows)
