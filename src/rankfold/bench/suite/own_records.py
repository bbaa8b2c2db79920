"""Records that a suite writes itself: what a run was made for, and that a run never began."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rankfold.bench.suite.outcome import Outcome
from rankfold.runs.describe import training_part
from rankfold.runs.output import read_failure
from rankfold.runs.prepare import schedule_of
from rankfold.runs.record import (
    BytesPart,
    CurvePart,
    FitPart,
    MethodPart,
    ParametersPart,
    ReducerPart,
    RunRecord,
    TrainingPart,
    TuningPart,
)
from rankfold.runs.request import RunRequest
from rankfold.tasks import TaskRequest

logger = logging.getLogger("rankfold.bench")


def marked(outcome: Outcome, part: TuningPart | FitPart) -> Outcome:
    """Return an outcome whose record says what the run was made for, on disk too if it is there."""
    record = outcome.record
    if record is None or part in (record.tuning, record.fit):
        return outcome
    record = replace(record, fit=part) if isinstance(part, FitPart) else replace(record, tuning=part)
    # A failure under --overwrite leaves the earlier run where it is.
    if record.status == "done" or read_failure(outcome.request.out) is not None:
        _keep(record, outcome.request.out)
    return replace(outcome, record=record)


def with_unstarted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Write records for runs that failed before they knew their model and data; their siblings know them."""
    siblings = {_place(outcome.request): outcome.record for outcome in outcomes if outcome.record}
    return [_as_failed(outcome, siblings.get(_place(outcome.request))) for outcome in outcomes]


def _place(request: RunRequest) -> tuple[str, TaskRequest]:
    return request.model, request.task_request


def _as_failed(outcome: Outcome, sibling: RunRecord | None) -> Outcome:
    if outcome.record is not None or sibling is None or outcome.is_elsewhere:
        return outcome
    record = _unstarted(outcome, sibling)
    if not outcome.request.out.exists():
        _keep(record, outcome.request.out)
    return replace(outcome, record=record)


def _unstarted(outcome: Outcome, sibling: RunRecord) -> RunRecord:
    request = outcome.request
    return replace(
        sibling,
        status="failed",
        error=str(outcome.error),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command(),
        method=MethodPart(request.method, dict(request.options), {}),
        training=_training(request, sibling),
        parameters=ParametersPart(0, 0, 0, 0),
        bytes=BytesPart(0, 0, 0),
        seconds=replace(sibling.seconds, train=0.0, evaluate=0.0, total=0.0, step_median=0.0),
        peak_memory_bytes=0,
        metrics={},
        baselines={},
        predictions=(),
        curve=CurvePart(),
        reducer=None if request.reducer is None else ReducerPart(dict(request.reducer), layers=()),
        tuning=None,
        fit=None,
        flops=None,
    )


def _training(request: RunRequest, sibling: RunRecord) -> TrainingPart:
    """Return how a run would have been trained; what its request leaves open is as its sibling found it."""
    known = sibling.training
    rows = max(1, sibling.data.rows.get("train", 1))
    precision = known.precision if request.precision == "auto" else request.precision
    schedule = schedule_of(request, rows, precision)
    head = "none" if known.head == "none" else "frozen" if request.freeze_head else "trained"
    part = training_part(schedule, rows, request.max_length or known.max_length, head)
    return replace(part, rates=request.rates.non_default())


def _keep(record: RunRecord, folder: Path) -> None:
    """Write what became of a run; a full disk does not take along the report of all others."""
    try:
        folder.mkdir(parents=True, exist_ok=True)  # the run of an archive has none
        record.write(folder)
    except OSError as error:
        logger.warning(
            "cannot write '%s' (%s); what became of it stands in this report only.", folder, error.strerror
        )
