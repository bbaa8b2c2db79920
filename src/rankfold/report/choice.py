"""How a composition was chosen: the rungs of `rankfold fit`, who went on, and why the others did not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rankfold.bench.fit.halving import held_out_loss, ranked
from rankfold.runs.record import FitPart, RunRecord
from rankfold.runs.records import label_with_all

CHOSEN = "chosen"


@dataclass(frozen=True, slots=True)
class Contender:
    """One composition on its way through the rungs.

    Attributes:
        label: The method with its options.
        runs: Its runs, one for each rung that it reached.
        outcome: "chosen", or where it was dropped and why.
    """

    label: str
    runs: tuple[RunRecord, ...]
    outcome: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice between compositions.

    Attributes:
        budget: What all of them kept to, in words.
        steps: Updates of each rung.
        contenders: The chosen one first, then by how far they came.
    """

    budget: str
    steps: tuple[int, ...]
    contenders: tuple[Contender, ...]

    def labelled_runs(self) -> Iterator[tuple[str, RunRecord]]:
        """Yield every run with its composition's label."""
        return ((each.label, run) for each in self.contenders for run in each.runs)


def make_choices(records: Sequence[RunRecord]) -> tuple[Choice, ...]:
    """Return the choices that runs were made for; none for runs that were made for none."""
    choices: dict[tuple[str, tuple[int, ...], int], list[RunRecord]] = {}
    for record in records:
        if record.fit is not None and record.fit.role == "candidate":
            key = (record.fit.budget, record.fit.steps, record.training.seed)
            choices.setdefault(key, []).append(record)
    return tuple(Choice(budget, steps, _contenders(runs)) for (budget, steps, _), runs in choices.items())


def without_earlier_rungs(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs that can be compared: of a choice the reference, then those of its last rung."""
    parts = [(record.fit, record) for record in records]
    others = [record for part, record in parts if part is None]
    references = [record for part, record in parts if part is not None and part.role == "reference"]
    last = [
        record
        for part, record in parts
        if part is not None and part.role == "candidate" and part.rung == len(part.steps)
    ]
    return [*references, *ranked(last), *others] if last else [*references, *others]


def _contenders(records: Sequence[RunRecord]) -> tuple[Contender, ...]:
    """Return what became of each composition, the rungs from the last to the first."""
    rungs: dict[int, list[tuple[FitPart, RunRecord]]] = {}
    for record in records:
        if record.fit is not None:
            rungs.setdefault(record.fit.rung, []).append((record.fit, record))
    found: dict[str, Contender] = {}
    for number in sorted(rungs, reverse=True):
        part = rungs[number][0][0]
        order = ranked([record for _, record in rungs[number]])
        for place, record in enumerate(order):
            label = label_with_all(record.method.name, record.method.options)
            if label not in found:
                runs = [other for other in records if _is_same(other, record)]
                runs.sort(key=lambda run: run.fit.rung if run.fit else 0)
                found[label] = Contender(label, tuple(runs), _outcome(part, place, order))
    return tuple(found.values())


def _is_same(one: RunRecord, other: RunRecord) -> bool:
    return (one.method.name, one.method.options) == (other.method.name, other.method.options)


def _outcome(part: FitPart, place: int, order: Sequence[RunRecord]) -> str:
    """Return what became of the run at one place of its rung."""
    record, last_kept = order[place], order[min(part.kept, len(order)) - 1]
    if record.status == "failed":
        return f"failed in rung {part.rung}: {' '.join((record.error or '').split())}"
    if place < part.kept:
        return CHOSEN if part.rung == len(part.steps) else f"went on from rung {part.rung}"
    metric = record.task.metric
    where = f"dropped in rung {part.rung}, place {place + 1} of {len(order)}"
    if record.metrics[metric] != last_kept.metrics[metric]:
        return where
    is_tie = held_out_loss(record) == held_out_loss(last_kept)
    return f"{where}, by {'size' if is_tie else 'loss'} at equal {metric.replace('_', ' ')}"
