"""From run records to comparable rows: which runs belong together, what they say, and with how much doubt."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankfold.bench.label import labels_of, reducer_settings
from rankfold.bench.measured import measured_on, note_different_data
from rankfold.bench.measures import MEASURES
from rankfold.bench.record import RunRecord
from rankfold.bench.scores import mean_score, scores_of, shared_examples
from rankfold.bench.stats import (
    Difference,
    Interval,
    Verdict,
    paired_difference,
    verdicts,
)
from rankfold.errors import DataError, unknown_name
from rankfold.report.choice import Choice, make_choices, without_earlier_rungs

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


@dataclass(frozen=True, slots=True)
class Row:
    """One method: all its seeds together.

    Attributes:
        label: The method, with the settings that tell it from other rows of the same method.
        records: Its runs that ended well, by seed.
        failures: Its runs that did not.
        score: The metric with its interval; None if no run ended well.
        difference: Paired difference to the reference; None for the reference and where none can be made.
        verdict: What the difference says after correction for the number of comparisons.
    """

    label: str
    records: tuple[RunRecord, ...]
    failures: tuple[RunRecord, ...]
    score: Interval | None = None
    difference: Difference | None = None
    verdict: Verdict = "not comparable"

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All its runs, by seed."""
        return tuple(sorted((*self.records, *self.failures), key=lambda run: run.training.seed))

    def mean(self, read: Callable[[RunRecord], float]) -> float | None:
        """Return the mean of what `read` gives for each run that ended well, or None if there is none."""
        return float(np.mean([read(record) for record in self.records])) if self.records else None


@dataclass(frozen=True, slots=True)
class Study:
    """All rows for one model, task and data; the first row is the reference.

    Attributes:
        model: Name of the base model.
        task: Name of the task.
        metric: Name of the metric that is compared; larger is better.
        rows: One per method; the reference first.
        baselines: The metric of predictions that need no training, such as the majority class.
        examples: How many held-out examples all runs share.
        repeats: How many runs were left out because a later run of the same method and seed is there.
        choices: How `rankfold fit` came to some of the rows; its earlier rungs are no rows.
    """

    model: str
    task: str
    metric: str
    rows: tuple[Row, ...]
    baselines: Mapping[str, float]
    examples: int
    repeats: int
    choices: tuple[Choice, ...] = ()

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Every run, failed ones too."""
        return tuple(record for _, record in self.labelled_runs())

    def labelled_runs(self) -> list[tuple[str, RunRecord]]:
        """Return every run with the label of its row; those of earlier rungs, which have none, with all."""
        runs = [(row.label, run) for row in self.rows for run in row.runs]
        known = {id(run) for _, run in runs}
        earlier = (pair for choice in self.choices for pair in choice.labelled_runs())
        return [*runs, *((label, run) for label, run in earlier if id(run) not in known)]


def make_studies(records: Sequence[RunRecord], *, reference: str | None = None) -> list[Study]:
    """Sort records into studies and compare each method with the reference.

    Args:
        records: Runs of any methods, models and tasks, in the order the rows shall have.
        reference: Label of the row that the others are held against; the first row if not given.

    Raises:
        DataError: If there are no records.
        SpecError: If no study has a row with the reference's label.
    """
    if not records:
        raise DataError("there are no runs to report; run `rankfold train` or `rankfold compare` first.")
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        task = record.task
        if record.tuning is not None and record.tuning.trial is not None:
            continue  # a trial of tuning is measured on rows cut from training: it is no row of the table
        scoring = task.scoring or "likelihood"  # what records without one were made with
        measured = (task.name, task.metric, *map(str, measured_on(record)), scoring)
        key = (record.model.name, record.model.sha256, *measured)
        groups.setdefault(key, []).append(record)
    note_different_data([record for group in groups.values() for record in group])
    studies = [_study(group, reference) for group in groups.values()]
    labels = {row.label for study in studies for row in study.rows}
    if reference is not None and reference not in labels:
        raise unknown_name("reference", reference, labels)
    return studies


def _study(every: Sequence[RunRecord], reference: str | None) -> Study:
    records = without_earlier_rungs(every) or every
    rows = _rows(records)
    kept = sum(len(row.records) + len(row.failures) for row in rows)
    rows.sort(key=lambda row: row.label != reference)  # stable: the others keep their order
    metric = records[0].task.metric
    examples = shared_examples([record for row in rows for record in row.records])
    rows = [replace(row, score=mean_score(row.records, metric, examples)) for row in rows]
    baselines = next((row.records[0].baselines for row in rows if row.records), dict[str, float]())
    return Study(
        model=records[0].model.name,
        task=records[0].task.name,
        metric=metric,
        rows=tuple(_compared(rows, metric, examples)),
        baselines=baselines,
        examples=len(examples),
        repeats=len(records) - kept,
        choices=make_choices(every),
    )


def _rows(records: Sequence[RunRecord]) -> list[Row]:
    """Return one row per method and settings, without scores; of equal runs the latest that ended well."""
    budgets = {_key(record): _budget(record) for record in reversed(records) if record.status == "done"}
    groups: dict[str, dict[int, RunRecord]] = {}
    settings: dict[str, dict[str, object]] = {}
    for record in records:
        # A failed run did not use up its budget; it belongs to the first row that is otherwise equal.
        budget = _budget(record) if record.status == "done" else budgets.get(_key(record), {})
        key = json.dumps([_key(record), budget])
        settings.setdefault(key, {**_settings(record), **budget})
        seeds = groups.setdefault(key, {})
        if record.training.seed not in seeds or _rank(seeds[record.training.seed]) <= _rank(record):
            seeds[record.training.seed] = record
    found = {key: [seeds[seed] for seed in sorted(seeds)] for key, seeds in groups.items()}
    labels = labels_of([(runs[0].method.name, settings[key]) for key, runs in found.items()])
    return [
        Row(
            label,
            tuple(run for run in runs if run.status == "done"),
            tuple(run for run in runs if run.status == "failed"),
        )
        for label, runs in zip(labels, found.values(), strict=True)
    ]


def _rank(record: RunRecord) -> tuple[bool, str]:
    return record.status == "done", record.created


def _key(record: RunRecord) -> str:
    return json.dumps([record.method.name, _settings(record)], sort_keys=True)


def _settings(record: RunRecord) -> dict[str, object]:
    """Return what makes two runs the same method; the seed and what a run reports of itself are left out."""
    training = {name: getattr(record.training, name) for name in _ASKED}
    reducer = reducer_settings(record.reducer.options if record.reducer else None)
    return {**record.method.options, **reducer, **training, **record.training.rates}


def _budget(record: RunRecord) -> dict[str, object]:
    return {"steps": record.training.steps, "rows": record.data.rows.get("train", 0)}


def _compared(rows: Sequence[Row], metric: str, examples: Sequence[int | str]) -> list[Row]:
    """Return the rows with differences to the first one, and verdicts corrected together."""
    first = replace(rows[0], verdict="reference")
    differences = [_difference(row, first, metric, examples) for row in rows[1:]]
    answers = iter(verdicts([difference for difference in differences if difference]))
    return [
        first,
        *(
            replace(row, difference=difference, verdict=next(answers)) if difference else row
            for row, difference in zip(rows[1:], differences, strict=True)
        ),
    ]


def _difference(row: Row, first: Row, metric: str, examples: Sequence[int | str]) -> Difference | None:
    shared = {run.training.seed for run in row.records} & {run.training.seed for run in first.records}
    if not shared or not examples or metric not in MEASURES:
        return None
    return paired_difference(scores_of(row.records, examples), scores_of(first.records, examples), metric)
