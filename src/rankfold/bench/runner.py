"""Runs a suite: what is done already is kept, what fails becomes a record, and the rest goes on."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NoReturn

from rankfold.bench.method import method_config, recommended_learning_rate
from rankfold.bench.output import clear_failure, finished
from rankfold.bench.record import (
    NAME,
    BytesPart,
    CurvePart,
    MethodPart,
    ParametersPart,
    RunRecord,
)
from rankfold.bench.request import RunRequest
from rankfold.bench.run import run
from rankfold.bench.same_data import check_same_data
from rankfold.bench.unfinished import check_unfinished, is_unfinished
from rankfold.errors import RankfoldError, TrainingError
from rankfold.train.models import Kind
from rankfold.train.progress import Progress, Silent

logger = logging.getLogger("rankfold.bench")

Run = Callable[..., RunRecord]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Args:
        request: What was asked for.
        record: What is in its folder; None if it failed before anything was known of it.
        error: Why it failed; None if it did not.
        is_kept: Whether it had been done before.
    """

    request: RunRequest
    record: RunRecord | None
    error: Exception | None = None
    is_kept: bool = False


def check_methods(requests: Sequence[RunRequest]) -> None:
    """Check the names and options of all methods before the first run, so that a typo costs no time.

    Raises:
        SpecError: If a method or an option is unknown, or a value is not possible.
    """
    for request in requests:
        kind = Kind(request.kind) if request.kind in set(Kind) else Kind.CLASSIFICATION
        method_config(request.method, request.options, kind, seed=request.seed)


def run_all(
    requests: Sequence[RunRequest],
    *,
    make_progress: Callable[[], Progress] = Silent,
    run_one: Run = run,
    overwrite: bool = False,
) -> list[Outcome]:
    """Do what is not done yet, and go on with what was stopped; one failure does not stop the others.

    Args:
        requests: The runs of a suite.
        make_progress: Gives one listener for the whole and one for each run.
        run_one: Does one run.
        overwrite: Do again what is done.

    Raises:
        OutputExistsError: If a folder holds something that was not asked for, before anything is run.
        SpecError: If a run was stopped that is not what is asked for now.
        DataError: If the data has changed since a run was done that is kept.
    """
    kept = {request.out: None if overwrite else finished(request) for request in requests}
    check_same_data(requests, kept)
    begun = {request.out for request in requests if not overwrite and is_unfinished(request.out)}
    for request in requests:
        if request.out in begun:
            check_unfinished(replace(request, resume=True))
    whole = make_progress()
    whole.start(len(requests), "runs")
    outcomes: list[Outcome] = []
    try:
        for request in requests:
            whole.advance(len(outcomes), now=request.out.name)
            record = kept[request.out]
            if record is None:
                request = replace(request, overwrite=overwrite, resume=request.out in begun)
                outcomes.append(_attempt(request, run_one, make_progress()))
            else:
                outcomes.append(Outcome(request, record, is_kept=True))
        whole.advance(len(outcomes))
    finally:
        whole.finish()
    return _with_unstarted(outcomes)


def raise_shared(outcomes: Sequence[Outcome]) -> NoReturn:
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


def _attempt(request: RunRequest, run_one: Run, progress: Progress) -> Outcome:
    clear_failure(request.out)
    try:
        return Outcome(request, run_one(request, progress=progress))
    except Exception as error:  # a failed run is a row of the comparison, whatever the reason
        logger.debug("'%s' failed.", request.out, exc_info=True)
        record = (
            RunRecord.read(request.out) if (request.out / NAME).is_file() and not request.overwrite else None
        )
        return Outcome(request, record, error)
    finally:
        progress.finish()


def _with_unstarted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Write records for runs that failed before they knew their model and data; their siblings know them."""
    sibling = next((outcome.record for outcome in outcomes if outcome.record), None)
    if sibling is None:
        return list(outcomes)
    found: list[Outcome] = []
    for outcome in outcomes:
        if outcome.record is None:
            record = _unstarted(outcome, sibling)
            if not outcome.request.out.exists():
                outcome.request.out.mkdir(parents=True)
                record.write(outcome.request.out)
            found.append(replace(outcome, record=record))
        else:
            found.append(outcome)
    return found


def _unstarted(outcome: Outcome, sibling: RunRecord) -> RunRecord:
    request = outcome.request
    rate = request.learning_rate or recommended_learning_rate(request.method)
    return replace(
        sibling,
        status="failed",
        error=str(outcome.error),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command(),
        method=MethodPart(request.method, dict(request.options), {}),
        training=replace(sibling.training, learning_rate=rate, seed=request.seed),
        parameters=ParametersPart(0, 0, 0, 0),
        bytes=BytesPart(0, 0, 0),
        seconds=replace(sibling.seconds, train=0.0, evaluate=0.0, total=0.0, step_median=0.0),
        peak_memory_bytes=0,
        metrics={},
        baselines={},
        predictions=(),
        curve=CurvePart(),
    )
