"""`rankfold fit --run`: the candidates of a budget, trained on the user's data until one is left."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rankfold.bench.fit.candidates import Candidate
from rankfold.bench.fit.halving import like_guessing, ranked
from rankfold.bench.fit.plan import FitPlan
from rankfold.bench.suite.executors.executor import Executor
from rankfold.bench.suite.outcome import Outcome, check_all_here, raise_shared
from rankfold.bench.suite.own_records import marked
from rankfold.bench.suite.runner import run_all
from rankfold.errors import OutputExistsError
from rankfold.files import write_into
from rankfold.progress import Progress, Silent
from rankfold.runs.output import check_output
from rankfold.runs.record import FitPart, RunRecord
from rankfold.runs.resume import folder_beside

logger = logging.getLogger("rankfold.bench")

PLAN_NAME = "fit.json"


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was chosen.

    Args:
        winner: The chosen candidate.
        records: Every run, rung by rung, the reference's last.
        command: How to train the winner at full length, measured on the validation split.
    """

    winner: Candidate
    records: tuple[RunRecord, ...]
    command: tuple[str, ...]


def fit(
    plan: FitPlan,
    *,
    make_progress: Callable[[], Progress] = Silent,
    executor: Executor | None = None,
    overwrite: bool = False,
) -> Fitted:
    """Choose a candidate by successive halving; what an earlier call has trained is kept.

    Args:
        plan: What to train.
        make_progress: Gives one listener for each rung and one for each run.
        executor: Does the runs; in this process, one after another, if None.
        overwrite: Begin anew where the folder holds an earlier choice.

    Raises:
        OutputExistsError: If the folder holds another choice, or something else.
        DataError: If the data has changed since a run was done that is kept.
        TrainingError: If every candidate of a rung failed.
        BusyError: If another process is at a run.
    """
    _claim(plan, overwrite=overwrite)
    records: list[RunRecord] = []
    done: list[Outcome] = []
    left: Sequence[Candidate] = plan.candidates
    keeps = [*plan.sizes[1:], 1]
    for number, (steps, kept) in enumerate(zip(plan.rungs, keeps, strict=True), start=1):
        logger.info("rung %d of %d: %d candidates, %d steps each.", number, len(keeps), len(left), steps)
        requests = [plan.request(each, f"rung-{number}/{each.method}", steps=steps) for each in left]
        outcomes = run_all(requests, make_progress=make_progress, executor=executor, earlier=done)
        check_all_here(outcomes)
        done += outcomes
        if all(outcome.error for outcome in outcomes):
            raise_shared(outcomes)
        part = FitPart(plan.budget.text(), tuple(plan.rungs), number, kept)
        here = [_placed(outcome, part) for outcome in outcomes]
        of_record = {id(record): candidate for record, candidate in zip(here, left, strict=True)}
        left = [of_record[id(record)] for record in ranked(here)[:kept] if record.status == "done"]
        records += here
        _tell_of_guessing(here)
        _tell_what_is_left(here, plan, number)
    if plan.reference is not None:
        request = plan.request(plan.reference, "reference", steps=plan.steps)
        (outcome,) = run_all([request], make_progress=make_progress, executor=executor, earlier=done)
        check_all_here([outcome])
        if outcome.record is None:  # it never got as far as the others did with the same model and data
            raise_shared([outcome])
        part = FitPart(plan.budget.text(), tuple(plan.rungs), len(keeps), 1, role="reference")
        records.append(_placed(outcome, part))
    full = plan.request(left[0], "winner", steps=None)
    full = replace(full, hold_out=False, train_rows=None, eval_rows=None)
    return Fitted(left[0], tuple(records), full.command())


def _claim(plan: FitPlan, *, overwrite: bool) -> None:
    """Make the folder that of this plan, or go on in it if it is."""
    file = plan.out / PLAN_NAME
    content = (json.dumps(plan.to_dict(), indent=1, ensure_ascii=False) + "\n").encode()
    if not file.is_file():
        if plan.out.is_dir() and any(plan.out.iterdir()):
            raise OutputExistsError(
                f"'{plan.out}' holds something else than a choice; choose another folder."
            )
        check_output(plan.out, overwrite=False)
    elif overwrite:
        reference = plan.out / "reference"
        for folder in (reference, folder_beside(reference), *plan.out.glob("rung-*")):
            shutil.rmtree(folder, ignore_errors=True)
    elif file.read_bytes() != content:
        raise OutputExistsError(
            f"'{plan.out}' holds another choice (see its {PLAN_NAME}); "
            "choose another folder, or add --overwrite to replace it."
        )
    write_into(plan.out, PLAN_NAME, content)


def _placed(outcome: Outcome, part: FitPart) -> RunRecord:
    """Return a run's record with its place in the choice, on disk too."""
    record = marked(outcome, part).record
    assert record is not None, "a run without a record has siblings that know its model and data"
    return record


def _tell_of_guessing(records: Sequence[RunRecord]) -> None:
    """Say so if a rung was too short to tell its candidates apart."""
    guessing = like_guessing(records)
    if 2 * len(guessing) > len(records):
        logger.info(
            "%d of %d candidates are not separated from guessing: the rung says little; give more --steps.",
            len(guessing),
            len(records),
        )


def _tell_what_is_left(records: Sequence[RunRecord], plan: FitPlan, number: int) -> None:
    """Say how long the later rungs will take, by how long this one took."""
    done = [record for record in records if record.status == "done"]
    a_step = sum(each.seconds.train for each in done) / sum(each.training.steps for each in done)
    around = sum(each.seconds.total - each.seconds.train for each in done) / len(done)
    later = list(zip(plan.sizes, plan.rungs, strict=True))[number:]
    later += [(1, plan.steps)] if plan.reference is not None else []
    seconds = sum(runs * (around + steps * a_step) for runs, steps in later)
    if later:
        logger.info("about %.0f min are left.", max(1.0, seconds / 60))
