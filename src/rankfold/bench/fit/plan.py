"""What a choice between compositions will train."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from rankfold.bench.fit.budget import Budget
from rankfold.bench.fit.candidates import RANKS, Candidate
from rankfold.bench.fit.halving import rung_sizes, rung_steps
from rankfold.bench.fit.size import ALL_LINEAR, Ruler
from rankfold.errors import SpecError
from rankfold.runs.methods import PEFT_LORA
from rankfold.runs.request import RunRequest


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
    reference: Candidate | None
    steps: int
    eta: int

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
            steps: How many updates; those of the usual number of epochs if None.
        """
        return RunRequest(
            **self.base,
            method=candidate.method,
            options=dict(candidate.options),
            out=self.out / place,
            steps=steps,
            hold_out=True,
        )

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the plan as JSON values, without the folder: the same plan anywhere."""
        values = {name: value for name, value in asdict(self).items() if name != "out"}
        return json.loads(json.dumps({"format": 1, **values, "rungs": self.rungs}))


def lora_within(ruler: Ruler, budget: Budget) -> Candidate | None:
    """Return PEFT's LoRA that uses most of a budget, or None if none fits."""
    found: list[Candidate] = []
    for targets in (ruler.usual, ALL_LINEAR):
        for rank in RANKS:
            options: dict[str, JsonValue] = {"r": rank, "lora_alpha": 2 * rank}
            options["target_modules"] = cast("JsonValue", targets)
            try:
                found.append(Candidate(PEFT_LORA, options, ruler.lora(rank, targets)))
            except SpecError:
                break  # larger ranks are refused for the same reason
    inside = [(budget.use(each.size), each) for each in found if each.size and budget.use(each.size) <= 1]
    return max(inside, key=lambda pair: pair[0])[1] if inside else None
