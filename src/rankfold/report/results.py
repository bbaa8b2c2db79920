"""Results: the runs of one method with the same settings, over seeds, under a label."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rankfold.bench.statistics.comparison import Difference, Interval, Verdict
from rankfold.runs.record import RunRecord, TuningInfo
from rankfold.runs.records import differing, label_of, reducer_settings

Settings = Mapping[str, object]

_TRAINING_SETTINGS = (
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
_DATA_SETTINGS = ("text_column", "pair_column", "label_column", "group_column", "picture_column", "mixture")


@dataclass(frozen=True, slots=True)
class Result:
    """The runs of one method over seeds, with score, difference and verdict.

    Attributes:
        label: The method, with the settings that tell it from other results of the same method.
        records: Its finished runs, by seed.
        failures: Its failed runs.
        settings: Options, training settings and budget of its request, without values that tuning chose.
        score: The metric with its interval; None if no run finished.
        difference: Paired difference to the reference; None for the reference, and where none can be made.
        verdict: The verdict on the difference, corrected for the number of comparisons.
        why: The reason where it is not comparable; empty otherwise.
        detectable: The smallest difference to the reference that the runs find with 80 % power among all
            comparisons of the study; None without a difference.
    """

    label: str
    records: tuple[RunRecord, ...]
    failures: tuple[RunRecord, ...]
    settings: Settings = field(default_factory=dict[str, object])
    score: Interval | None = None
    difference: Difference | None = None
    verdict: Verdict = "not comparable"
    why: str = ""
    detectable: float | None = None

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
        """Trials and chosen values of its tuning, or None if it was not tuned."""
        return next((run.tuning for run in self.runs if run.tuning), None)

    def mean(self, read: Callable[[RunRecord], float]) -> float | None:
        """Return the mean over the finished runs of a value that `read` takes from one; None without runs."""
        return float(np.mean([read(record) for record in self.records])) if self.records else None


def file_bytes(record: RunRecord) -> int:
    """Return the size of a run's adapter on disk: of its rounded file, if the run is stored rounded."""
    stored = record.stored.get(record.request.stored_type or "")
    return stored.file if stored else record.bytes.weights_file


def make_results(
    groups: Sequence[Sequence[RunRecord]], names: Mapping[str, str] | None = None
) -> list[list[Result]]:
    """Return the results of several studies, without scores; of equal runs the latest finished one.

    A result has the same label in every study: a setting that tells two results of a method apart in one
    study is named in all of them. Values that tuning chose differ by nature and are named only if nothing
    else does.

    Args:
        groups: The runs of each study.
        names: Labels by the names of runs; they replace labels made of settings.
    """
    studies = [_group_runs(records, names or {}) for records in groups]
    labels = _make_labels([[(group.method, group.own_settings) for group in study] for study in studies])
    return [
        [
            Result(
                label,
                tuple(run for run in group.runs if run.status == "done"),
                tuple(run for run in group.runs if run.status == "failed"),
                group.own_settings,
            )
            for label, group in zip(_unique_labels(study, texts, names or {}), study, strict=True)
        ]
        for study, texts in zip(studies, labels, strict=True)
    ]


def method_settings(record: RunRecord) -> dict[str, object]:
    """Return the options of a method, its Reducer and its rates by role: all that a sweep can change."""
    reducer = reducer_settings(record.reducer.options if record.reducer else None)
    return {**record.method.options, **reducer, **record.training.rates}


@dataclass(frozen=True, slots=True)
class _Group:
    """The runs of one result, one per seed, in order; with their settings and the names of tuned ones."""

    settings: Settings
    tuned_names: frozenset[str]
    seeds: dict[int, RunRecord] = field(default_factory=dict[int, RunRecord])

    @property
    def runs(self) -> list[RunRecord]:
        return [self.seeds[seed] for seed in sorted(self.seeds)]

    @property
    def method(self) -> str:
        return self.runs[0].method.name

    @property
    def own_settings(self) -> Settings:
        """The settings that tuning did not choose."""
        return {name: value for name, value in self.settings.items() if name not in self.tuned_names}


def _group_runs(records: Sequence[RunRecord], names: Mapping[str, str]) -> list[_Group]:
    """Return the groups of runs that are one result each."""

    def key_of(record: RunRecord) -> str:
        settings = [names.get(record.name), record.method.name, _settings(record)]
        return json.dumps(settings, sort_keys=True)

    budgets = {key_of(record): _budget(record) for record in reversed(records) if record.status == "done"}
    usual = next(iter(budgets.values()), dict[str, object]())
    groups: dict[str, _Group] = {}
    for record in records:
        # A failed run did not use up its budget; it belongs to the first result that is otherwise equal.
        budget = _budget(record) if record.status == "done" else budgets.get(key_of(record), usual)
        key = json.dumps([key_of(record), budget])
        tuned_names = frozenset(record.tuning.values if record.tuning else ())
        group = groups.setdefault(key, _Group({**_settings(record), **budget}, tuned_names))
        earlier = group.seeds.get(record.training.seed)
        if earlier is None or _rank(earlier) <= _rank(record):
            group.seeds[record.training.seed] = record
    return list(groups.values())


def _make_labels(studies: Sequence[Sequence[tuple[str, Settings]]]) -> list[list[str]]:
    """Return a label for each result of each study, the same keys being named in all of them."""
    keys: dict[str, set[str]] = {}
    for study in studies:
        for method in {name for name, _ in study}:
            siblings = [settings for name, settings in study if name == method]
            keys.setdefault(method, set()).update(differing(siblings))
    return [[label_of(name, settings, keys[name]) for name, settings in study] for study in studies]


def _unique_labels(groups: Sequence[_Group], labels: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return a label for each group, by the name of its run where that has one; no two are equal."""
    labels = [names.get(group.runs[0].name, label) for group, label in zip(groups, labels, strict=True)]
    if len(set(labels)) == len(labels):
        return list(labels)
    return _make_labels([[(group.method, group.settings) for group in groups]])[0]


def _rank(record: RunRecord) -> tuple[bool, str]:
    return record.status == "done", record.created


def _settings(record: RunRecord) -> dict[str, object]:
    """Return the settings that two runs of one result share; the seed and measurements are left out."""
    training = {name: getattr(record.training, name) for name in _TRAINING_SETTINGS}
    values = record.request.changed_values()
    data = {name: values[name] for name in _DATA_SETTINGS if name in values}
    return {**method_settings(record), **training, **data}


def _budget(record: RunRecord) -> dict[str, object]:
    return {"steps": record.training.steps, "rows": record.data.rows.get("train", 0)}
