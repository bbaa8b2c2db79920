"""What became of the runs that were asked for, and whether that is enough to go on with."""

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
    """What became of one request.

    Args:
        request: What was asked for.
        record: What is in its folder; None if it failed before anything was known of it, or if another
            process is making it.
        error: Why it failed; None if it did not.
        is_reused: Whether it had been done before.
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
    """Check that no other process is making some of the runs, for what takes the results of all.

    Raises:
        BusyError: If one is.
    """
    elsewhere = [outcome for outcome in outcomes if outcome.is_elsewhere]
    if elsewhere:
        verb = "is" if len(elsewhere) == 1 else "are"
        raise BusyError(
            f"{len(elsewhere)} of {len(outcomes)} runs {verb} made by another process "
            f"({', '.join(each.request.out.name for each in elsewhere)}); "
            "give the same command again when it has ended."
        ) from elsewhere[0].error


def check_conditions_started(outcomes: Sequence[Outcome]) -> None:
    """Check that some run of each model and task began: where none did there is no record to report.

    Raises:
        TrainingError: If none of one did.
    """
    if reasons := unstarted_reasons(outcomes):
        listed = "; ".join(f"no run of {name} began ({reason})" for name, reason in reasons.items())
        raise TrainingError(f"{listed}; mend the cause and run it again.")


def unstarted_reasons(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return why, for each model and task of which no run began: "minilm on mrpc"."""
    known = {_name(each.request) for each in outcomes if each.record or each.is_elsewhere}
    reasons: dict[str, str] = {}
    for each in outcomes:
        if each.error and (name := _name(each.request)) not in known:
            reasons.setdefault(name, str(each.error).rstrip("."))
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
    reasons = "; ".join(f"{each.request.out.name}: {str(each.error).rstrip('.')}" for each in outcomes)
    raise TrainingError(
        f"all {len(outcomes)} runs failed ({reasons}); mend the causes and run it again."
    ) from errors[0]


logger = logging.getLogger("rankfold.bench")


def record_purpose(outcome: Outcome, part: TuningInfo | FitInfo) -> Outcome:
    """Return an outcome whose record says what the run was made for, on disk too if it is there."""
    record = outcome.record
    if record is None or part in (record.tuning, record.fit):
        return outcome
    record = replace(record, fit=part) if isinstance(part, FitInfo) else replace(record, tuning=part)
    # A failure under --overwrite leaves the earlier run where it is.
    if record.status == "done" or read_failure(outcome.request.out) is not None:
        _keep(record, outcome.request.out)
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
