"""Which runs are one result: the seeds of one method with the same settings, under a telling name."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rankfold.bench.statistics.comparison import Difference, Interval, Verdict
from rankfold.runs.record import RunRecord, TuningInfo
from rankfold.runs.records import differing, label_of, reducer_settings

Settings = Mapping[str, object]

_ASKED = (
    "learning_rate",
    "batch_size",
    "scheduler",
    "warmup",
    "weight_decay",
    "max_length",
    "precision",
    "head",
)
# What a run reads of its data, which stands nowhere but in its request.
_READ = ("text_column", "pair_column", "label_column", "group_column", "mixture")


@dataclass(frozen=True, slots=True)
class Result:
    """One method: all its seeds together.

    Attributes:
        label: The method, with the settings that tell it from other rows of the same method.
        records: Its runs that ended well, by seed.
        failures: Its runs that did not.
        settings: What was asked for: options, training and budget, without what tuning chose.
        score: The metric with its interval; None if no run ended well.
        difference: Paired difference to the reference; None for the reference and where none can be made.
        verdict: What the difference says after correction for the number of comparisons.
    """

    label: str
    records: tuple[RunRecord, ...]
    failures: tuple[RunRecord, ...]
    settings: Settings = field(default_factory=dict[str, object])
    score: Interval | None = None
    difference: Difference | None = None
    verdict: Verdict = "not comparable"

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All its runs, by seed."""
        return tuple(sorted((*self.records, *self.failures), key=lambda run: run.training.seed))

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.runs[0].method.name

    @property
    def tuning(self) -> TuningInfo | None:
        """How it was tuned, or None if it was not."""
        return next((run.tuning for run in self.runs if run.tuning), None)

    def mean(self, read: Callable[[RunRecord], float]) -> float | None:
        """Return the mean of what `read` gives for each run that ended well, or None if there is none."""
        return float(np.mean([read(record) for record in self.records])) if self.records else None


def make_results(
    groups: Sequence[Sequence[RunRecord]], names: Mapping[str, str] | None = None
) -> list[list[Result]]:
    """Return the results of several studies, without scores; of equal runs the latest that ended well.

    A result has the same label in every study: a setting that tells two results of a method apart in one
    study is named in all of them. Values that tuning chose differ by nature and are named only if nothing
    else does.

    Args:
        groups: The runs of each study.
        names: Labels by the names of runs, which replace what would be made of their settings.
    """
    found = [_gathered(records, names or {}) for records in groups]
    labels = _labels([[(runs[0].method.name, _asked(each)) for each, runs in rows] for rows in found])
    return [
        [
            Result(
                label,
                tuple(run for run in runs if run.status == "done"),
                tuple(run for run in runs if run.status == "failed"),
                _asked(each),
            )
            for label, (each, runs) in zip(_named(rows, texts, names or {}), rows, strict=True)
        ]
        for rows, texts in zip(found, labels, strict=True)
    ]


def method_settings(record: RunRecord) -> dict[str, object]:
    """Return the options of a method, its Reducer and its rates by role: what a sweep or a trial changes."""
    reducer = reducer_settings(record.reducer.options if record.reducer else None)
    return {**record.method.options, **reducer, **record.training.rates}


@dataclass(frozen=True, slots=True)
class _Asked:
    """Settings of a result, and which of them tuning chose."""

    settings: Settings
    tuned: frozenset[str]


def _asked(each: _Asked) -> Settings:
    return {key: value for key, value in each.settings.items() if key not in each.tuned}


def _gathered(records: Sequence[RunRecord], names: Mapping[str, str]) -> list[tuple[_Asked, list[RunRecord]]]:
    """Return the runs of each result, one per seed, with what was asked for."""

    def key_of(record: RunRecord) -> str:
        settings = [names.get(record.name), record.method.name, _settings(record)]
        return json.dumps(settings, sort_keys=True)

    budgets = {key_of(record): _budget(record) for record in reversed(records) if record.status == "done"}
    usual = next(iter(budgets.values()), dict[str, object]())
    groups: dict[str, dict[int, RunRecord]] = {}
    asked: dict[str, _Asked] = {}
    for record in records:
        # A failed run did not use up its budget; it belongs to the first result that is otherwise equal.
        budget = _budget(record) if record.status == "done" else budgets.get(key_of(record), usual)
        key = json.dumps([key_of(record), budget])
        tuned = frozenset(record.tuning.values if record.tuning else ())
        asked.setdefault(key, _Asked({**_settings(record), **budget}, tuned))
        seeds = groups.setdefault(key, {})
        if record.training.seed not in seeds or _rank(seeds[record.training.seed]) <= _rank(record):
            seeds[record.training.seed] = record
    return [(asked[key], [seeds[seed] for seed in sorted(seeds)]) for key, seeds in groups.items()]


def _labels(studies: Sequence[Sequence[tuple[str, Settings]]]) -> list[list[str]]:
    """Return a label for each result of each study, the same keys being named in all of them."""
    keys: dict[str, set[str]] = {}
    for rows in studies:
        for method in {name for name, _ in rows}:
            siblings = [settings for name, settings in rows if name == method]
            keys.setdefault(method, set()).update(differing(siblings))
    return [[label_of(name, settings, keys[name]) for name, settings in rows] for rows in studies]


def _named(
    rows: Sequence[tuple[_Asked, list[RunRecord]]], labels: Sequence[str], names: Mapping[str, str]
) -> list[str]:
    """Return the labels, by the names of runs where these have one; no two rows have the same."""
    named = [names.get(runs[0].name, label) for (_, runs), label in zip(rows, labels, strict=True)]
    if len(set(named)) == len(named):
        return named
    return _labels([[(runs[0].method.name, each.settings) for each, runs in rows]])[0]


def _rank(record: RunRecord) -> tuple[bool, str]:
    return record.status == "done", record.created


def _settings(record: RunRecord) -> dict[str, object]:
    """Return what makes two runs the same method; the seed and what a run reports of itself are left out."""
    training = {name: getattr(record.training, name) for name in _ASKED}
    changed = record.request.changed_values()
    read = {name: changed[name] for name in _READ if name in changed}
    return {**method_settings(record), **training, **read}


def _budget(record: RunRecord) -> dict[str, object]:
    return {"steps": record.training.steps, "rows": record.data.rows.get("train", 0)}
