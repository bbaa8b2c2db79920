"""One question to the configurator: a model, a budget, and what fits."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from rankfold.bench.fit.budget import Budget
from rankfold.bench.fit.candidates import Candidate, find_candidates, fitting, shortlist
from rankfold.bench.fit.plan import FitPlan, lora_within
from rankfold.bench.fit.size import Ruler
from rankfold.models.base import resolve_model
from rankfold.models.kind import default_max_length
from rankfold.models.meta import MetaBase, meta_base
from rankfold.progress import Progress
from rankfold.runs.request import RunRequest
from rankfold.tasks import load_task

_ANY_METHOD = ""


@final
@dataclass(frozen=True, slots=True)
class Fit:
    """The answer.

    Args:
        base: What all runs would share: fields of `RunRequest` without method, options, steps and out.
        budget: What was asked for.
        ruler: Measures on the model.
        candidates: Everything that was considered.
    """

    base: Mapping[str, Any]
    budget: Budget
    ruler: Ruler
    candidates: tuple[Candidate, ...]

    @property
    def fitting(self) -> list[Candidate]:
        """Every composition that fits, the largest use of the budget first."""
        return fitting(self.candidates, self.budget)

    @property
    def shortlist(self) -> list[Candidate]:
        """The one of each method that uses most of the budget."""
        return shortlist(self.candidates, self.budget)

    @property
    def unbuilt(self) -> list[Candidate]:
        """What cannot be built on the model, or not sensibly."""
        return [each for each in self.candidates if each.size is None]

    @property
    def left_out(self) -> dict[str, str]:
        """Why a method is not on the short list, by its name."""
        there = {each.method for each in self.shortlist}
        found: dict[str, str] = {}
        for each in self.candidates:
            if each.method in there:
                continue
            if each.size is not None:
                found[each.method] = "nothing of it fits"
            else:
                found.setdefault(each.method, (each.reason or "").rstrip("."))
        return found

    def plan(self, out: Path, *, steps: int, eta: int) -> FitPlan:
        """Return what a choice between the short list would train.

        Raises:
            SpecError: If `steps` or `eta` is too small.
        """
        return FitPlan(
            out=out,
            base=self.base,
            budget=self.budget,
            candidates=tuple(self.shortlist),
            reference=lora_within(self.ruler, self.budget),
            steps=steps,
            eta=eta,
        )

    def small_print(self) -> str:
        """Return what the figures mean, and what they do not."""
        head = self.ruler.head()
        beside = f" Beside any of them a task head of {head:,} numbers is trained and saved." if head else ""
        layers = self.ruler.usual if isinstance(self.ruler.usual, str) else ", ".join(self.ruler.usual)
        return (
            "No statement on quality: the list is in the order of what is used of the budget.\n"
            f"Bytes: float32, and 200 for the name of a tensor.{beside}\n"
            f"Step: predicted, in steps of LoRA of rank 8 on {layers}, with {self.ruler.tokens:,} tokens."
        )

    def to_dict(self, *, all_shown: bool) -> dict[str, Any]:
        """Return the answer as plain values."""
        shown = self.fitting if all_shown else self.shortlist
        return {
            "model": self.base["model"],
            "budget": asdict(self.budget),
            "head": self.ruler.head(),
            "reference": {"rank": 8, "target_modules": self.ruler.usual, "tokens": self.ruler.tokens},
            "considered": len(self.candidates),
            "compositions": [self._row(each) for each in shown],
            "left_out": self.left_out,
            "not_built": [
                {"method": each.method, "options": dict(each.options), "reason": each.reason}
                for each in self.unbuilt
            ],
        }

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        size = candidate.size
        assert size is not None, "what fits has a size"
        measured = {**asdict(size), "bytes": size.bytes, "use": self.budget.use(size)}
        return {"method": candidate.method, "options": dict(candidate.options), **measured}


def ask(
    base: Mapping[str, Any],
    budget: Budget,
    methods: Sequence[str] = (),
    *,
    reads_data: bool = False,
    progress: Progress | None = None,
) -> Fit:
    """Measure every composition on a model.

    Args:
        base: Fields of `RunRequest` that all runs share; `model` is needed, the data with `reads_data` only.
        budget: What the compositions have to keep to.
        methods: Names of presets; all of them if empty.
        reads_data: Take the kind of the task and its classes from the data.
        progress: Is told about every method.

    Raises:
        SpecError: If there is no such model, task or method, or a setting is not possible.
        DataError: If the data cannot be read or understood.
    """
    request = RunRequest(**base, hold_out=True, method=_ANY_METHOD, out=Path())
    described = _described(request, reads_data=reads_data)
    length = request.max_length or default_max_length(described.kind)
    ruler = Ruler(described, tokens=request.batch_size * length)
    return Fit(dict(base), budget, ruler, tuple(find_candidates(ruler, methods, progress=progress)))


def _described(request: RunRequest, *, reads_data: bool) -> MetaBase:
    if not reads_data:
        return meta_base(request.model, kind=request.kind, num_labels=2)
    data = load_task(request.task_request, is_causal=resolve_model(request.model).is_causal)
    return meta_base(request.model, kind=data.kind, num_labels=len(data.examples.label_names or ()))
