"""`rankfold fit --run`: the candidates of a budget, trained on the user's data until one is left."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from rankfold.bench.fit.budget import Budget
from rankfold.bench.fit.candidates import RANKS, Candidate
from rankfold.bench.fit.halving import ranked, rung_sizes, rung_steps
from rankfold.bench.fit.size import ALL_LINEAR, Ruler
from rankfold.bench.method import PEFT_PREFIX
from rankfold.bench.record import FitPart, RunRecord
from rankfold.bench.request import RunRequest
from rankfold.bench.run import run
from rankfold.bench.runner import Outcome, Run, raise_shared, run_all
from rankfold.errors import OutputExistsError, SpecError
from rankfold.files import write_whole
from rankfold.train.progress import Progress, Silent

logger = logging.getLogger("rankfold.bench")

PLAN_NAME = "fit.json"
DEFAULT_STEPS, DEFAULT_ETA = 240, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What a choice will train.

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
    reference: Candidate | None = None
    steps: int = DEFAULT_STEPS
    eta: int = DEFAULT_ETA

    def __post_init__(self) -> None:
        """Check what the rungs are made of."""
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
            steps: How many updates.
        """
        asked = {"steps": steps, "hold_out": True, **self.base}
        return RunRequest(
            **asked, method=candidate.method, options=dict(candidate.options), out=self.out / place
        )

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the plan as JSON values, without the folder: the same plan anywhere."""
        values = {name: value for name, value in asdict(self).items() if name != "out"}
        return json.loads(json.dumps({"format": 1, **values, "rungs": self.rungs}))


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


def lora_within(ruler: Ruler, budget: Budget) -> Candidate | None:
    """Return PEFT's LoRA that uses most of a budget, or None if none fits."""
    found: list[Candidate] = []
    for targets in (ruler.usual, ALL_LINEAR):
        for rank in RANKS:
            options: dict[str, JsonValue] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
            try:
                found.append(Candidate(f"{PEFT_PREFIX}lora", options, ruler.lora(rank, targets)))
            except SpecError:
                break  # larger ranks are refused for the same reason
    inside = [(budget.use(each.size), each) for each in found if each.size and budget.use(each.size) <= 1]
    return max(inside, key=lambda pair: pair[0])[1] if inside else None


def fit(
    plan: FitPlan,
    *,
    make_progress: Callable[[], Progress] = Silent,
    run_one: Run = run,
    overwrite: bool = False,
) -> Fitted:
    """Choose a candidate by successive halving; what an earlier call has trained is kept.

    Args:
        plan: What to train.
        make_progress: Gives one listener for each rung and one for each run.
        run_one: Does one run.
        overwrite: Begin anew where the folder holds an earlier choice.

    Raises:
        OutputExistsError: If the folder holds another choice, or something else.
        TrainingError: If every candidate of a rung failed.
    """
    _claim(plan, overwrite=overwrite)
    records: list[RunRecord] = []
    left: Sequence[Candidate] = plan.candidates
    keeps = [*plan.sizes[1:], 1]
    for number, (steps, kept) in enumerate(zip(plan.rungs, keeps, strict=True), start=1):
        logger.info("rung %d of %d: %d candidates, %d steps each.", number, len(keeps), len(left), steps)
        requests = [plan.request(each, f"rung-{number}/{each.method}", steps=steps) for each in left]
        outcomes = run_all(requests, make_progress=make_progress, run_one=run_one)
        if all(outcome.error for outcome in outcomes):
            raise_shared(outcomes)
        part = FitPart(plan.budget.text(), tuple(plan.rungs), number, kept)
        here = [_marked(outcome, part) for outcome in outcomes]
        of_record = {id(record): candidate for record, candidate in zip(here, left, strict=True)}
        left = [of_record[id(record)] for record in ranked(here)[:kept] if record.status == "done"]
        records += here
        _tell_what_is_left(here, plan, number)
    if plan.reference is not None:
        request = plan.request(plan.reference, "reference", steps=plan.steps)
        (outcome,) = run_all([request], make_progress=make_progress, run_one=run_one)
        if outcome.record is None:  # it never got as far as the others did with the same model and data
            raise_shared([outcome])
        part = FitPart(plan.budget.text(), tuple(plan.rungs), len(keeps), 1, role="reference")
        records.append(_marked(outcome, part))
    full = plan.request(left[0], "winner", steps=None)
    full = replace(full, hold_out=False, train_rows=None, eval_rows=None)
    return Fitted(left[0], tuple(records), full.command())


def _claim(plan: FitPlan, *, overwrite: bool) -> None:
    """Make the folder that of this plan, or go on in it if it is."""
    file = plan.out / PLAN_NAME
    content = (json.dumps(plan.to_dict(), indent=1, ensure_ascii=False) + "\n").encode()
    if file.is_file() and overwrite:
        for place in ("reference", *(path.name for path in plan.out.glob("rung-*"))):
            shutil.rmtree(plan.out / place, ignore_errors=True)
    elif file.is_file() and file.read_bytes() != content:
        raise OutputExistsError(
            f"'{plan.out}' holds another choice (see its {PLAN_NAME}); "
            "choose another folder, or add --overwrite to replace it."
        )
    elif not file.is_file() and plan.out.exists() and any(plan.out.iterdir()):
        raise OutputExistsError(f"'{plan.out}' holds something else than a choice; choose another folder.")
    plan.out.mkdir(parents=True, exist_ok=True)
    write_whole(file, content)


def _marked(outcome: Outcome, part: FitPart) -> RunRecord:
    """Return a run's record with its place in the choice, on disk too."""
    record = outcome.record
    assert record is not None, "a run without a record has siblings that know its model and data"
    if record.fit != part:
        record = replace(record, fit=part)
        record.write(outcome.request.out)
    return record


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
