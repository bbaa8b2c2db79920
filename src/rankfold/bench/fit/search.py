"""Successive halving for `rankfold fit --run`: many candidates with few updates, the best again with more.

Every rung trains from the beginning. A learning rate falls to zero in the steps it was planned for, so going
on from a shorter run would not be the run that was asked for. It costs little: with three times the steps in
each rung, all earlier runs of the winner together are half of its last one.
"""

import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from pydantic import JsonValue

from rankfold.bench.executors.base import Executor
from rankfold.bench.fit.budget import Budget
from rankfold.bench.fit.candidates import Candidate, Proposal, largest_lora
from rankfold.bench.statistics.comparison import (
    knows_metric,
    not_above_baseline,
    paired_difference,
    rank_records,
    scores_of,
    shared_examples,
    stored_score,
)
from rankfold.bench.suites.outcomes import Outcome, check_none_elsewhere, raise_common_error, record_purpose
from rankfold.bench.suites.runner import run_all
from rankfold.errors import OutputExistsError, SpecError
from rankfold.files import write_into
from rankfold.progress import Progress, Silent
from rankfold.runs.fields import fields_of
from rankfold.runs.output import check_output, folder_beside
from rankfold.runs.record import NAME as RECORD_NAME
from rankfold.runs.record import FitInfo, RunRecord
from rankfold.runs.records import label_as_stored
from rankfold.runs.request import RunRequest

logger = logging.getLogger("rankfold.bench")

PLAN_NAME = "fit.json"

CHOSEN_NAME = "chosen"
"""The folder of the chosen adapter, as the last rung trained it."""


def rung_sizes(candidates: int, eta: int) -> list[int]:
    """Return how many candidates each rung trains: the first all, each later one the best 1/eta of the last.

    Example:
        >>> rung_sizes(14, 3)
        [14, 5, 2]
    """
    sizes = [candidates]
    while sizes[-1] > eta:
        sizes.append(math.ceil(sizes[-1] / eta))
    return sizes


def rung_steps(rungs: int, steps: int, eta: int) -> list[int]:
    """Return the updates of each rung: the last has `steps`, each earlier one 1/eta of the next.

    Example:
        >>> rung_steps(3, 240, 3)
        [27, 80, 240]
    """
    return [max(1, round(steps / eta**later)) for later in reversed(range(rungs))]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """The runs of one choice, rung by rung.

    Args:
        out: The folder of all runs.
        base: What all runs share: fields of `RunRequest` without method, options, steps and out.
        budget: What the candidates keep to.
        candidates: Between which is chosen.
        reference: PEFT's LoRA of the budget, which the chosen one is held against; None if none fits.
        steps: Updates of the last rung.
        eta: How many times fewer candidates, and more updates, each rung has than the one before.

    Raises:
        SpecError: If `steps` or `eta` is too small.
    """

    out: Path
    base: Mapping[str, Any]
    budget: Budget
    candidates: tuple[Candidate, ...]
    reference: Candidate | None
    steps: int
    eta: int

    def __post_init__(self) -> None:
        """Check steps and eta."""
        if self.steps < 1:
            raise SpecError(f"steps is {self.steps}; give a number above 0.")
        if self.eta < 2:  # noqa: PLR2004
            raise SpecError(f"eta is {self.eta}, which drops no candidate; give 2 or more.")

    @property
    def sizes(self) -> list[int]:
        """How many candidates each rung trains."""
        return rung_sizes(len(self.candidates), self.eta)

    @property
    def rungs(self) -> list[int]:
        """How many updates each rung has."""
        return rung_steps(len(self.sizes), self.steps, self.eta)

    @property
    def updates(self) -> int:
        """How many updates there are in all."""
        by_rung = sum(runs * steps for runs, steps in zip(self.sizes, self.rungs, strict=True))
        return by_rung + (0 if self.reference is None else self.steps)

    def request(self, candidate: Candidate, place: str, *, steps: int | None) -> RunRequest:
        """Return the run of a candidate on rows held out of the training split.

        Args:
            candidate: What is trained.
            place: Its folder below `out`.
            steps: How many updates; those of the usual number of epochs if None.
        """
        return RunRequest(
            **self.base,
            method=candidate.method,
            options=dict(candidate.options),
            store=candidate.stored_type,
            out=self.out / place,
            steps=steps,
            hold_out=True,
        )

    def places(self) -> dict[str, str]:
        """Return the folder of each candidate by its label: the method, numbered if it has several."""
        counts = Counter(candidate.method for candidate in self.candidates)
        return {
            candidate.label: candidate.method
            if counts[candidate.method] == 1
            else f"{candidate.method}-{number}"
            for number, candidate in enumerate(self.candidates, start=1)
        }

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the plan as JSON values, without the folder: the same plan anywhere."""
        values = {name: value for name, value in asdict(self).items() if name != "out"}
        return json.loads(json.dumps({"format": 1, **values, "rungs": self.rungs}))


def plan_search(proposal: Proposal, out: Path, *, steps: int, eta: int) -> FitPlan:
    """Return the plan of a choice between the shortlisted candidates.

    Raises:
        SpecError: If `steps` or `eta` is too small.
    """
    return FitPlan(
        out=out,
        base=proposal.base,
        budget=proposal.budget,
        candidates=tuple(proposal.shortlist),
        reference=largest_lora(proposal.ruler, proposal.budget),
        steps=steps,
        eta=eta,
    )


@dataclass(frozen=True, slots=True)
class FitChoice:
    """The chosen candidate with all runs of the choice.

    Args:
        winner: The chosen candidate.
        records: Every run, rung by rung, the reference's last.
        request: The winner trained at full length, measured on the validation split.
    """

    winner: Candidate
    records: tuple[RunRecord, ...]
    request: RunRequest

    def reason(self) -> str:
        """Return why it was chosen, in words: its score, and how far the next and LoRA are from it."""
        parts = [(record, record.fit) for record in self.records if record.fit and record.status == "done"]
        best, *others = rank_records(
            [record for record, part in parts if part.role == "candidate" and part.rung == len(part.steps)]
        )
        references = [record for record, part in parts if part.role == "reference"]
        tried = sum(part.role == "candidate" and part.rung == 1 for _, part in parts)
        metric = best.task.metric.replace("_", " ")
        lines = [f"{metric} {stored_score(best):.3f} after {best.training.steps:,} steps, of {tried} tried"]
        lines += [
            f"{_gain(best, other)} over {name} {_label(other)}"
            for name, other in (
                ("the next,", next(iter(others), None)),
                ("PEFT's", next(iter(references), None)),
            )
            if other is not None
        ]
        return "; ".join(lines)


def _gain(best: RunRecord, other: RunRecord) -> str:
    """Return how much better the first of two runs is, with its interval if there is one."""
    metric, examples = best.task.metric, shared_examples([best, other])
    if not (examples and knows_metric([best, other], metric)):
        return f"{stored_score(best) - stored_score(other):+.3f}"
    ours, theirs = (scores_of([record], examples, metric) for record in (best, other))
    gain = paired_difference(ours, theirs, metric).interval
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _label(record: RunRecord) -> str:
    return label_as_stored(record.method.name, record.method.options, record.request.stored_type)


def fit(
    plan: FitPlan,
    *,
    make_progress: Callable[[], Progress] = Silent,
    executor: Executor | None = None,
    overwrite: bool = False,
) -> FitChoice:
    """Choose a candidate by successive halving; finished runs of an earlier call are reused.

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
    earlier: list[Outcome] = []
    remaining: Sequence[Candidate] = plan.candidates
    survivor_counts = [*plan.sizes[1:], 1]
    for number, (steps, survivors) in enumerate(zip(plan.rungs, survivor_counts, strict=True), start=1):
        logger.info(
            "rung %d of %d: %d candidates, %d steps each.",
            number,
            len(survivor_counts),
            len(remaining),
            steps,
        )
        requests = [
            plan.request(candidate, f"rung-{number}/{plan.places()[candidate.label]}", steps=steps)
            for candidate in remaining
        ]
        outcomes = run_all(requests, make_progress=make_progress, executor=executor, earlier=earlier)
        check_none_elsewhere(outcomes)
        earlier += outcomes
        if all(outcome.error for outcome in outcomes):
            raise_common_error(outcomes)
        part = FitInfo(plan.budget.text(), tuple(plan.rungs), number, survivors)
        rung_records = [_record_with_part(outcome, part) for outcome in outcomes]
        of_record = {id(record): candidate for record, candidate in zip(rung_records, remaining, strict=True)}
        remaining = [
            of_record[id(record)]
            for record in rank_records(rung_records)[:survivors]
            if record.status == "done"
        ]
        records += rung_records
        _log_guessing(rung_records)
        _log_time_left(rung_records, plan, number)
    if plan.reference is not None:
        request = plan.request(plan.reference, "reference", steps=plan.steps)
        (outcome,) = run_all([request], make_progress=make_progress, executor=executor, earlier=earlier)
        check_none_elsewhere([outcome])
        if outcome.record is None:  # it never got as far as the others did with the same model and data
            raise_common_error([outcome])
        part = FitInfo(plan.budget.text(), tuple(plan.rungs), len(survivor_counts), 1, role="reference")
        records.append(_record_with_part(outcome, part))
    _copy_adapter(
        plan.out / f"rung-{len(plan.rungs)}" / plan.places()[remaining[0].label], plan.out / CHOSEN_NAME
    )
    full = plan.request(remaining[0], "winner", steps=None)
    full = replace(full, hold_out=False, train_rows=None, eval_rows=None)
    return FitChoice(remaining[0], tuple(records), full)


def _copy_adapter(run: Path, folder: Path) -> None:
    """Copy the adapter of a run without its record, curve and examples, which the run has already."""
    if (run / SAFETENSORS_WEIGHTS_NAME).is_file():  # the run of an archive has none
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(
            run, folder, ignore=shutil.ignore_patterns(RECORD_NAME, "curve.csv", "examples.jsonl")
        )


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
        for folder in (plan.out / CHOSEN_NAME, reference, folder_beside(reference), *plan.out.glob("rung-*")):
            shutil.rmtree(folder, ignore_errors=True)
    elif _without_defaults(_read_plan(file)) != _without_defaults(plan.to_dict()):
        raise OutputExistsError(
            f"'{plan.out}' holds another choice (see its {PLAN_NAME}); "
            "choose another folder, or add --overwrite to replace it."
        )
    write_into(plan.out, PLAN_NAME, content)


def _read_plan(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except ValueError:
        values = None
    return cast("dict[str, Any]", values) if isinstance(values, dict) else {}


def _without_defaults(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan whose base leaves out values that a request has anyway: 0.1.0 wrote them, we do not."""
    known = fields_of(RunRequest)
    base = cast("dict[str, Any]", plan.get("base") or {})
    base = {
        name: value
        for name, value in base.items()
        if name not in known or value != known[name].get_default(call_default_factory=True)
    }
    return {**plan, "base": base}


def _record_with_part(outcome: Outcome, part: FitInfo) -> RunRecord:
    """Return a run's record with its place in the choice, on disk too."""
    record = record_purpose(outcome, part).record
    assert record is not None, "a run without a record has siblings that know its model and data"
    return record


def _log_guessing(records: Sequence[RunRecord]) -> None:
    """Say so if a rung was too short to tell its candidates apart."""
    guessing = not_above_baseline(records)
    if 2 * len(guessing) > len(records):
        logger.info(
            "%d of %d candidates are not separated from guessing: the rung says little; give more --steps.",
            len(guessing),
            len(records),
        )


def _log_time_left(records: Sequence[RunRecord], plan: FitPlan, number: int) -> None:
    """Say how long the later rungs will take, by how long this one took."""
    finished = [record for record in records if record.status == "done"]
    a_step = sum(record.seconds.train for record in finished) / sum(
        record.training.steps for record in finished
    )
    around = sum(record.seconds.total - record.seconds.train for record in finished) / len(finished)
    later = list(zip(plan.sizes, plan.rungs, strict=True))[number:]
    later += [(1, plan.steps)] if plan.reference is not None else []
    seconds = sum(runs * (around + steps * a_step) for runs, steps in later)
    if later:
        logger.info("about %.0f min are left.", max(1.0, seconds / 60))
