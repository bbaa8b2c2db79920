"""Outcomes of requested runs: records, failures, and checks whether they suffice to go on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from rankfold.errors import BusyError, RankfoldError, TrainingError
from rankfold.runs.describe import training_part
from rankfold.runs.output import read_failure
from rankfold.runs.prepare import schedule_of
from rankfold.runs.record import (
    BytesInfo,
    CurveInfo,
    FitInfo,
    MethodInfo,
    ParametersInfo,
    ReducerInfo,
    RunRecord,
    TrainingInfo,
    TuningInfo,
)
from rankfold.runs.request import RunRequest
from rankfold.tasks import TaskRequest


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request.

    Args:
        request: The request.
        record: The record in its folder; None if it failed before anything was known of it, or if another
            process is making it.
        error: Why it failed; None if it did not.
        is_reused: Whether an earlier call had finished it.
    """

    request: RunRequest
    record: RunRecord | None
    error: Exception | None = None
    is_reused: bool = False

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process is making it, so that it has neither been done nor failed."""
        return isinstance(self.error, BusyError)


def check_none_elsewhere(outcomes: Sequence[Outcome]) -> None:
    """Check that no other process is at some of the runs, before their results are used together.

    Raises:
        BusyError: If one is.
    """
    elsewhere = [outcome for outcome in outcomes if outcome.is_elsewhere]
    if elsewhere:
        verb = "is" if len(elsewhere) == 1 else "are"
        raise BusyError(
            f"{len(elsewhere)} of {len(outcomes)} runs {verb} made by another process "
            f"({', '.join(outcome.request.out.name for outcome in elsewhere)}); "
            "give the same command again when it has ended."
        ) from elsewhere[0].error


def check_conditions_started(outcomes: Sequence[Outcome]) -> None:
    """Check that some run of each model and task began: where none did there is no record to report.

    Raises:
        TrainingError: If none of one did.
    """
    if reasons := unstarted_reasons(outcomes):
        failures = "; ".join(f"no run of {name} began ({reason})" for name, reason in reasons.items())
        raise TrainingError(f"{failures}; mend the cause and run it again.")


def unstarted_reasons(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return why, for each model and task of which no run began: "minilm on mrpc"."""
    started = {_name(outcome.request) for outcome in outcomes if outcome.record or outcome.is_elsewhere}
    reasons: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.error and (name := _name(outcome.request)) not in started:
            reasons.setdefault(name, str(outcome.error).rstrip("."))
    return reasons


def _name(request: RunRequest) -> str:
    return f"{request.model} on {request.task or request.data}"


def raise_common_error(outcomes: Sequence[Outcome]) -> NoReturn:
    """Raise why all runs failed; a reason that all of them share is raised as itself.

    Raises:
        TrainingError: If they had different reasons.
    """
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if len({str(error) for error in errors}) == 1 and isinstance(errors[0], RankfoldError):
        raise errors[0]
    reasons = "; ".join(
        f"{outcome.request.out.name}: {str(outcome.error).rstrip('.')}" for outcome in outcomes
    )
    raise TrainingError(
        f"all {len(outcomes)} runs failed ({reasons}); mend the causes and run it again."
    ) from errors[0]


logger = logging.getLogger("rankfold.bench")


def record_purpose(outcome: Outcome, part: TuningInfo | FitInfo) -> Outcome:
    """Add the part on tuning or fitting to an outcome's record, on disk too if it is there."""
    record = outcome.record
    if record is None or part in (record.tuning, record.fit):
        return outcome
    record = replace(record, fit=part) if isinstance(part, FitInfo) else replace(record, tuning=part)
    # A failure under --overwrite leaves the earlier run where it is.
    if record.status == "done" or read_failure(outcome.request.out) is not None:
        _write_record(record, outcome.request.out)
    return replace(outcome, record=record)


def record_unstarted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Write records for runs that failed before they knew their model and data; their siblings know them."""
    siblings = {_place(outcome.request): outcome.record for outcome in outcomes if outcome.record}
    return [_as_failed(outcome, siblings.get(_place(outcome.request))) for outcome in outcomes]


def _place(request: RunRequest) -> tuple[str, TaskRequest]:
    return request.model, request.task_request


def _as_failed(outcome: Outcome, sibling: RunRecord | None) -> Outcome:
    if outcome.record is not None or sibling is None or outcome.is_elsewhere:
        return outcome
    record = _unstarted_record(outcome, sibling)
    if not outcome.request.out.exists():
        _write_record(record, outcome.request.out)
    return replace(outcome, record=record)


def _unstarted_record(outcome: Outcome, sibling: RunRecord) -> RunRecord:
    request = outcome.request
    return replace(
        sibling,
        status="failed",
        error=str(outcome.error),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        request=replace(request, resume=False),
        method=MethodInfo(request.method, dict(request.options), {}),
        training=_training(request, sibling),
        parameters=ParametersInfo(0, 0, 0, 0),
        bytes=BytesInfo(0, 0, 0),
        seconds=replace(sibling.seconds, train=0.0, evaluate=0.0, total=0.0, step_median=0.0),
        peak_memory_bytes=0,
        metrics={},
        baselines={},
        predictions=(),
        curve=CurveInfo(),
        reducer=None if request.reducer is None else ReducerInfo(dict(request.reducer), layers=()),
        tuning=None,
        fit=None,
        flops=None,
    )


def _training(request: RunRequest, sibling: RunRecord) -> TrainingInfo:
    """Return the training settings of a run that never began; open ones are its sibling's."""
    sibling_training = sibling.training
    rows = max(1, sibling.data.rows.get("train", 1))
    precision = sibling_training.precision if request.precision == "auto" else request.precision
    schedule = schedule_of(request, rows, precision)
    head = "none" if sibling_training.head == "none" else "frozen" if request.freeze_head else "trained"
    part = training_part(schedule, rows, request.max_length or sibling_training.max_length, head)
    return replace(part, rates=request.rates.non_default())


def _write_record(record: RunRecord, folder: Path) -> None:
    """Write a record; a full disk only logs a warning, so the report of other runs goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)  # the run of an archive has none
        record.write(folder)
    except OSError as error:
        logger.warning(
            "cannot write '%s' (%s); what became of it stands in this report only.", folder, error.strerror
        )
