"""Runs a suite: what is done already is kept, what fails becomes a record, and the rest goes on."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rankfold.bench.method import method_config, recommended_learning_rate
from rankfold.bench.output import check_output
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
from rankfold.errors import OutputExistsError
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
    """Do what is not done yet; one failure does not stop the others.

    Args:
        requests: The runs of a suite.
        make_progress: Gives one listener for the whole and one for each run.
        run_one: Does one run.
        overwrite: Do again what is done.

    Raises:
        OutputExistsError: If a folder holds something that was not asked for, before anything is run.
    """
    kept = {request.out: None if overwrite else finished(request) for request in requests}
    whole = make_progress()
    whole.start(len(requests), "runs")
    outcomes: list[Outcome] = []
    try:
        for request in requests:
            whole.advance(len(outcomes), now=request.out.name)
            record = kept[request.out]
            if record is None:
                outcomes.append(_attempt(replace(request, overwrite=overwrite), run_one, make_progress()))
            else:
                outcomes.append(Outcome(request, record, is_kept=True))
        whole.advance(len(outcomes))
    finally:
        whole.finish()
    return _with_unstarted(outcomes)


def finished(request: RunRequest) -> RunRecord | None:
    """Return the record of a request that has been done well, or None if it is still to do.

    Raises:
        OutputExistsError: If its folder holds something else, which is not overwritten.
    """
    if not (request.out / NAME).is_file():
        check_output(request.out, overwrite=False)
        return None
    record = RunRecord.read(request.out)
    if _without_out(record.command) != _without_out(request.command()):
        raise OutputExistsError(
            f"'{request.out}' holds another run ({' '.join(_without_out(record.command))}); "
            "choose another folder, or add --overwrite to replace it."
        )
    return record if record.status == "done" else None


def _without_out(command: Sequence[str]) -> list[str]:
    """Return a command without the folder it writes and the leave to replace it: the same run anywhere."""
    words = [word for word in command if word != "--overwrite"]
    place = words.index("--out") if "--out" in words else len(words)
    return words[:place] + words[place + 2 :]


def _attempt(request: RunRequest, run_one: Run, progress: Progress) -> Outcome:
    _clear_failure(request.out)
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


def _clear_failure(folder: Path) -> None:
    """Take away the record of a failed run, so that the run can be tried again."""
    if (folder / NAME).is_file() and RunRecord.read(folder).status == "failed":
        shutil.rmtree(folder)


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
