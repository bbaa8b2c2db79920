"""Two sets of records, run by run: has anything become worse since?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np

from rankfold.bench.statistics.comparison import (
    Difference,
    Verdict,
    knows_metric,
    paired_difference,
    scores_of,
    shared_examples,
    verdicts,
)
from rankfold.errors import DataError
from rankfold.runs.record import RunRecord
from rankfold.runs.records import label_with_all

ChangeOutcome = Verdict | Literal["the same", "failed", "fixed", "failed in both"]
"""The change of a method: a verdict on its predictions, or a failure in one set or in both."""


# By what a seed's runs were and are; the first that there is counts.
_FAILURES: Mapping[tuple[str, str], ChangeOutcome] = {
    ("done", "failed"): "failed",
    ("failed", "done"): "fixed",
    ("failed", "failed"): "failed in both",
}


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One method with its settings on one task and model, in both sets.

    Attributes:
        label: The method with its options.
        task: The task's name.
        model: The base model's name.
        metric: The metric.
        seeds: Those that finished in both sets.
        old: The metric of the older runs, averaged over these seeds; None if there are none.
        new: That of the newer ones.
        difference: New less old, paired over rows and seeds; None if it cannot be compared.
        outcome: The outcome, corrected for all comparisons together.
        why: Why it cannot be compared, or failed; or which seeds the comparison leaves out.
        bytes_ratio: Newer by older learned bytes.
        step_ratio: Newer by older time of a step: only worth something where the machine was the same.
    """

    label: str
    task: str
    model: str
    metric: str
    seeds: tuple[int, ...]
    old: float | None
    new: float | None
    difference: Difference | None
    outcome: ChangeOutcome
    why: str | None = None
    bytes_ratio: float | None = None
    step_ratio: float | None = None

    @property
    def is_regression(self) -> bool:
        """Whether it is worse than it was."""
        return self.outcome in ("worse", "failed")


@final
@dataclass(frozen=True, slots=True)
class RecordDiff:
    """The changes between two sets of records.

    Attributes:
        changes: One for each method in both sets.
        only_old: Labels that the newer set lacks.
        only_new: Labels that the older set lacks.
    """

    changes: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]


def compare_records(old: Iterable[RunRecord], new: Iterable[RunRecord]) -> RecordDiff:
    """Compare two sets of records: runs that were asked for with the same words, seed by seed.

    Args:
        old: The records to compare with.
        new: The records that may have become worse.

    Raises:
        DataError: If the sets have no method in common.
    """
    before, after = _by_identity(old), _by_identity(new)
    common = [identity for identity in before if identity in after]
    if not common:
        raise DataError(
            "the two sets have no run in common: model, task, method or a setting differs in all of them; "
            "name two folders of the same suite."
        )
    changes = [_change(before[identity], after[identity]) for identity in common]
    return RecordDiff(
        tuple(_with_verdicts(changes)),
        tuple(_label(before[identity]) for identity in before if identity not in after),
        tuple(_label(after[identity]) for identity in after if identity not in before),
    )


def _by_identity(records: Iterable[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """Return the latest record of each seed, by the identity of its run."""
    by_identity: dict[str, dict[int, RunRecord]] = {}
    for record in sorted(records, key=lambda record: record.created):
        by_identity.setdefault(record.request.identity_of_seeds(), {})[record.training.seed] = record
    return by_identity


def _label(runs: Mapping[int, RunRecord]) -> str:
    record = next(iter(runs.values()))
    return label_with_all(record.method.name, record.method.options)


def _change(old: Mapping[int, RunRecord], new: Mapping[int, RunRecord]) -> Change:
    record = next(iter(new.values()))
    metric = record.task.metric
    seeds = tuple(
        sorted(seed for seed in old.keys() & new.keys() if {old[seed].status, new[seed].status} == {"done"})
    )
    change = Change(
        _label(new), record.task.name, record.model.name, metric, seeds, None, None, None, "not comparable"
    )
    if failure := _failure(old, new):
        return replace(change, **failure)
    if not seeds:
        return replace(change, why="no seed finished in both sets")
    ours, theirs = [new[seed] for seed in seeds], [old[seed] for seed in seeds]
    if {run.task.metric for run in [*ours, *theirs]} != {metric}:
        return replace(change, why="the task has changed: it is measured by another metric")
    change = replace(
        change,
        why=_left_out(old, new),
        old=_mean([run.metrics[metric] for run in theirs]),
        new=_mean([run.metrics[metric] for run in ours]),
        bytes_ratio=_ratio([run.bytes.learned for run in ours], [run.bytes.learned for run in theirs]),
        step_ratio=_ratio(
            [run.seconds.step_median for run in ours], [run.seconds.step_median for run in theirs]
        ),
    )
    return _compare_runs(change, ours, theirs)


def _failure(old: Mapping[int, RunRecord], new: Mapping[int, RunRecord]) -> dict[str, str] | None:
    """Return outcome and reason if a seed fails now that did not, or if none finished in both sets."""
    shared_seeds = sorted(old.keys() & new.keys())
    seed_of_statuses = {(old[seed].status, new[seed].status): seed for seed in reversed(shared_seeds)}
    for statuses, outcome in _FAILURES.items():
        if statuses in seed_of_statuses and (outcome == "failed" or ("done", "done") not in seed_of_statuses):
            seed = seed_of_statuses[statuses]
            return {"outcome": outcome, "why": f"seed {seed}: {new[seed].error or old[seed].error}"}
    return None


def _left_out(old: Mapping[int, RunRecord], new: Mapping[int, RunRecord]) -> str | None:
    """Return which seeds a comparison leaves out, and why; None if there are none."""
    seeds: dict[str, list[str]] = {reason: [] for reason in ("not in both sets", *_FAILURES.values())}
    for seed in sorted(old.keys() | new.keys()):
        if seed not in old or seed not in new:
            seeds["not in both sets"].append(str(seed))
        elif outcome := _FAILURES.get((old[seed].status, new[seed].status)):
            seeds[outcome].append(str(seed))
    return (
        "; ".join(f"seeds {', '.join(names)}: {reason}" for reason, names in seeds.items() if names) or None
    )


def _compare_runs(change: Change, ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> Change:
    if {run.data.sha256 for run in ours} != {run.data.sha256 for run in theirs}:
        return replace(change, why="the data has changed: its hash differs")
    if {run.task.version or 1 for run in ours} != {run.task.version or 1 for run in theirs}:
        return replace(change, why="the task has changed: its version differs")
    examples = shared_examples([*ours, *theirs])
    if not knows_metric([*ours, *theirs], change.metric) or not examples:
        return replace(change, why=f"there are no predictions that give {change.metric}")
    new, old = (scores_of(runs, examples, change.metric) for runs in (ours, theirs))
    if np.array_equal(new.labels, old.labels) and np.array_equal(new.predictions, old.predictions):
        return replace(change, outcome="the same")
    return replace(change, difference=paired_difference(new, old, change.metric))


def _with_verdicts(changes: Sequence[Change]) -> list[Change]:
    """Return the changes with verdicts, corrected together."""
    differences = [change.difference for change in changes if change.difference]
    outcomes = iter(verdicts(differences))
    return [replace(change, outcome=next(outcomes)) if change.difference else change for change in changes]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ratio(new: Sequence[float], old: Sequence[float]) -> float | None:
    return _mean(new) / _mean(old) if _mean(old) else None
