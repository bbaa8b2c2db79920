"""Run requests: finished runs are reused, a failure becomes a record, and the others go on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from rankfold.bench.executors.base import Executor, FinishedRun, Inline
from rankfold.bench.suites.outcomes import Outcome, record_unstarted
from rankfold.errors import DataError
from rankfold.progress import SECONDS_LEFT, Progress, Silent
from rankfold.runs.output import clear_failure, find_finished, read_failure
from rankfold.runs.record import DataVersion, RunRecord, measured_on
from rankfold.runs.request import RunRequest
from rankfold.runs.resume import check_unfinished, current_data
from rankfold.tasks import TaskRequest

logger = logging.getLogger("rankfold.bench")


def run_all(
    requests: Sequence[RunRequest],
    *,
    make_progress: Callable[[], Progress] = Silent,
    executor: Executor | None = None,
    overwrite: bool = False,
    label: str = "runs",
    earlier: Sequence[Outcome] = (),
) -> list[Outcome]:
    """Run unfinished requests, and resume stopped ones; one failure does not stop the others.

    What another process finishes before its turn comes is taken as it is; what another is making is left
    alone.

    Args:
        requests: The runs of a suite.
        make_progress: Gives one listener for the whole and one for each run.
        executor: Does the runs; in this process, one after another, if None.
        overwrite: Do again what is done.
        label: What the runs are called where progress is shown.
        earlier: What these runs are built on, such as trials, on the same data.

    Raises:
        OutputExistsError: If a folder holds something that was not asked for, before anything is run.
        SpecError: If a run was stopped that is not what is asked for now.
        DataError: If the data has changed since a run was done that is kept, or a record cannot be read.
    """
    executor = executor or Inline()
    reused = {request.out: None if overwrite else find_finished(request) for request in requests}
    check_same_data(
        [
            *((outcome.request, outcome.record) for outcome in earlier if outcome.error is None),
            *((request, reused[request.out]) for request in requests),
        ]
    )
    remaining = [
        _resuming(request, overwrite=overwrite) for request in requests if reused[request.out] is None
    ]
    outcomes = {
        request.out: Outcome(request, record, is_reused=True)
        for request in requests
        if (record := reused[request.out]) is not None
    }
    for request in remaining:
        clear_failure(request.out)
    whole = make_progress()
    whole.start(len(requests), label)
    whole.advance(len(outcomes))
    try:
        for finished_run in executor.execute(remaining, make_progress):
            outcomes[finished_run.request.out] = _outcome(finished_run)
            whole.advance(len(outcomes), **_progress_fields(requests, outcomes, executor.jobs))
    finally:
        whole.finish()
    return record_unstarted([outcomes[request.out] for request in requests])


def _resuming(request: RunRequest, *, overwrite: bool) -> RunRequest:
    """Return the request with resuming switched on, if a stopped run has the same identity.

    It resumes although there may be nothing to resume: there may be once its turn comes.
    """
    request = replace(request, overwrite=overwrite, resume=not overwrite)
    if not overwrite:
        check_unfinished(request)
    return request


def _progress_fields(
    requests: Sequence[RunRequest], outcomes: Mapping[Path, Outcome], jobs: int
) -> dict[str, object]:
    """Return the fields of the progress bar: runs done elsewhere, failed runs, seconds left."""
    remaining = [request for request in requests if request.out not in outcomes]
    done_runs = [(outcome.request, outcome.record) for outcome in outcomes.values() if outcome.record]
    seconds = seconds_left(remaining, done_runs, jobs)
    elsewhere = sum(outcome.is_elsewhere for outcome in outcomes.values())
    failed = sum(outcome.error is not None for outcome in outcomes.values()) - elsewhere
    return {
        **({"elsewhere": elsewhere} if elsewhere else {}),
        **({"failed": failed} if failed else {}),
        **({} if seconds is None else {SECONDS_LEFT: seconds}),
    }


def _outcome(ended: FinishedRun) -> Outcome:
    """Return the outcome of a finished run; a failure may have left a record."""
    request = ended.request
    if ended.error is None:
        return Outcome(request, ended.record)
    logger.debug("'%s' failed.", request.out, exc_info=ended.error)
    outcome = Outcome(request, None, ended.error)
    if outcome.is_elsewhere or request.overwrite:
        return outcome
    return replace(outcome, record=read_failure(request.out))


def seconds_left(
    remaining: Sequence[RunRequest], done_runs: Sequence[tuple[RunRequest, RunRecord]], jobs: int
) -> float | None:
    """Return an estimate of the seconds until all are done, or None while nothing can be said.

    A run is expected to take what those of the same model, task and length took; where there is none, what
    all of them took, by the step if its steps are known. Several at once share the work evenly.

    Args:
        remaining: What is still to do, runs under way included.
        done_runs: What is done, with its record.
        jobs: How many runs are under way at once.
    """
    seconds_taken = [
        (request, record.seconds.total)
        for request, record in done_runs
        if record.status == "done" and record.seconds.total > 0
    ]
    if not seconds_taken:
        return None
    overall = mean(seconds for _, seconds in seconds_taken)
    step = overall / mean(record.training.steps for _, record in done_runs if record.status == "done")

    def expected_seconds(request: RunRequest) -> float:
        similar = [
            seconds for other_request, seconds in seconds_taken if _length(other_request) == _length(request)
        ]
        return mean(similar) if similar else step * request.steps if request.steps else overall

    return sum(map(expected_seconds, remaining)) / min(jobs, max(1, len(remaining)))


def _length(request: RunRequest) -> tuple[object, ...]:
    return (request.model, request.task, request.data, request.epochs, request.steps, request.train_rows)


_DIGITS = 8


def check_same_data(asked: Sequence[tuple[RunRequest, RunRecord | None]]) -> None:
    """Check that runs which are still to do will see the data of those that are done already.

    The files are read once for each task, and only if there is a run to do.

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
            _check(record, current_data(request), "now")


def _check(first: RunRecord, other: DataVersion | None, when: str) -> None:
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
