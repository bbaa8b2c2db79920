"""From run records to comparable rows: which runs belong together, what they say, and with how much doubt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from rankfold.bench.statistics.claims import JudgedClaim
from rankfold.bench.statistics.comparison import (
    Difference,
    baselines_of,
    mean_score,
    paired_difference,
    scores_of,
    shared_examples,
    verdicts,
)
from rankfold.bench.step_times import StepTime, read_step_times
from rankfold.bench.suites.saved_suite import judge_suite, load_suite
from rankfold.bench.suites.suite import Condition, Suite, model_of, runs_by_name, task_of
from rankfold.errors import DataError, unknown_name
from rankfold.report.results import Result, make_results
from rankfold.report.selection import Choice, Tuned, is_trial, make_choices, make_tuned, without_earlier_rungs
from rankfold.runs.record import RunRecord, measured_on, note_different_data
from rankfold.tasks.metrics import METRICS

# How many parts of a group's key do not speak of the data.
_WITHOUT_DATA = 5


@dataclass(frozen=True, slots=True)
class Study:
    """All rows for one model, task and data; the first result is the reference.

    Attributes:
        model: Name of the base model.
        task: Name of the task.
        metric: Name of the metric that is compared; larger is better, but for losses and errors.
        results: One per method; the reference first.
        baselines: The metric of predictions that need no training, such as the majority class.
        examples: How many held-out examples all runs share.
        repeats: How many runs were left out because a later run of the same method and seed is there.
        choices: How `rankfold fit` came to some of the rows; its earlier rungs are no rows.
        tuned: How the methods were tuned; the trials are no rows either.
        scoring: How answers were scored, if there are any.
        step_times: How long a step takes beside the reference's, measured in turns, by label of the result.
    """

    model: str
    task: str
    metric: str
    results: tuple[Result, ...]
    baselines: Mapping[str, float]
    examples: int
    repeats: int
    choices: tuple[Choice, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    scoring: str | None = None
    step_times: Mapping[str, StepTime] = field(default_factory=dict[str, StepTime])

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Every run, failed ones too, without trials."""
        return tuple(record for _, record in self.labelled_runs())

    def labelled_runs(self) -> list[tuple[str, RunRecord]]:
        """Return every run with the label of its result; runs of earlier rungs have all options in theirs."""
        runs = [(result.label, run) for result in self.results for run in result.runs]
        known = {id(run) for _, run in runs}
        earlier = (pair for choice in self.choices for pair in choice.labelled_runs())
        return [*runs, *((label, run) for label, run in earlier if id(run) not in known)]

    def labelled_trials(self) -> list[tuple[str, RunRecord]]:
        """Return every trial of tuning with the label of the result that it was made for."""
        return [(each.label, run) for each in self.tuned for run in each.trials]

    @property
    def is_tuned(self) -> bool:
        """Whether any result was tuned."""
        return any(result.tuning for result in self.results)


def make_studies(
    records: Sequence[RunRecord],
    *,
    reference: str | None = None,
    names: Mapping[str, str] | None = None,
) -> list[Study]:
    """Sort records into studies and compare each method with the reference.

    Args:
        records: Runs of any methods, models and tasks, in the order the rows shall have.
        reference: Label of the result that the others are held against; the first result if not given.
        names: Labels of rows by the names of their runs; made of the settings that differ if not given.

    Raises:
        DataError: If there are no records, or only trials of tuning.
        SpecError: If no study has a result with the reference's label.
    """
    if not records:
        raise DataError("there are no runs to report; run `rankfold train` or `rankfold compare` first.")
    groups = _grouped([record for record in records if not is_trial(record)], with_data=True)
    if not groups:
        raise DataError(
            f"all {len(records)} runs are trials of tuning; run the suite to its end, it keeps what is done."
        )
    note_different_data([record for group in groups.values() for record in group])
    trials = _grouped([record for record in records if is_trial(record)], with_data=False)
    compared = [without_earlier_rungs(group) or group for group in groups.values()]
    rows = make_results(compared, names)
    labels = {result.label for each in rows for result in each}
    if reference is not None and reference not in labels:
        raise unknown_name("reference", reference, labels)
    return [
        replace(
            _study(kept, each, reference),
            choices=make_choices(group),
            tuned=make_tuned(trials.get(key[:_WITHOUT_DATA], ()), each),
        )
        for (key, group), kept, each in zip(groups.items(), compared, rows, strict=True)
    ]


def _grouped(records: Sequence[RunRecord], *, with_data: bool) -> dict[tuple[str, ...], list[RunRecord]]:
    """Return the runs of each model and task; trials have other data, cut from the training split."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        task = record.task
        scoring = task.scoring or "likelihood"  # what records without one were made with
        key = (record.model.name, record.model.sha256, task.name, task.metric, scoring)
        groups.setdefault((*key, *map(str, measured_on(record))) if with_data else key, []).append(record)
    return groups


def _study(records: Sequence[RunRecord], rows: Sequence[Result], reference: str | None) -> Study:
    kept = sum(len(result.runs) for result in rows)
    rows = sorted(rows, key=lambda result: result.label != reference)  # stable: the others keep their order
    metric = records[0].task.metric
    examples = shared_examples([record for result in rows for record in result.records])
    rows = [replace(result, score=mean_score(result.records, metric, examples)) for result in rows]
    return Study(
        model=records[0].model.name,
        task=records[0].task.name,
        metric=metric,
        results=tuple(_compared(rows, metric, examples)),
        baselines=baselines_of([record for result in rows for record in result.records]),
        examples=len(examples),
        repeats=len(records) - kept,
        scoring=records[0].task.scoring,
    )


def _compared(rows: Sequence[Result], metric: str, examples: Sequence[int | str]) -> list[Result]:
    """Return the rows with differences to the first one, and verdicts corrected together."""
    first = replace(rows[0], verdict="reference")
    differences = [_difference(result, first, metric, examples) for result in rows[1:]]
    answers = iter(verdicts([difference for difference in differences if difference]))
    return [
        first,
        *(
            replace(result, difference=difference, verdict=next(answers)) if difference else result
            for result, difference in zip(rows[1:], differences, strict=True)
        ),
    ]


def _difference(
    result: Result, first: Result, metric: str, examples: Sequence[int | str]
) -> Difference | None:
    shared = {run.training.seed for run in result.records} & {run.training.seed for run in first.records}
    if not shared or not examples or metric not in METRICS:
        return None
    return paired_difference(scores_of(result.records, examples), scores_of(first.records, examples), metric)


@final
@dataclass(frozen=True, slots=True)
class Report:
    """What the terminal, the page, Markdown and CSV are made from.

    Attributes:
        studies: One for each model and task; at least one.
        judgements: What the runs say to each claim of their suite.
        name: The suite's name; empty if the runs are of none.
        description: What the suite shows, in a sentence.
        missing: Of which model and task of the suite runs are not there, and why if that is known, in a
            sentence each.
    """

    studies: tuple[Study, ...]
    judgements: tuple[JudgedClaim, ...] = ()
    name: str = ""
    description: str = ""
    missing: tuple[str, ...] = ()


def make_report(
    records: Sequence[RunRecord],
    folder: Path | None = None,
    *,
    reference: str | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Report:
    """Compare runs, and judge the claims of the suite they are of.

    Args:
        records: The runs. Rows have the order of the suite, or else that of their first runs.
        folder: Where they are; the suite that is kept there says what was asked.
        reference: Label of the result that the others are held against; the first result if not given.
        reasons: Why no run of a model and a task began (`rankfold.bench.suites.outcomes.unstarted_reasons`).

    Raises:
        DataError: If there are no runs, or the suite cannot be read.
        SpecError: If no study has a result with the reference's label.
    """
    suite = load_suite(folder) if folder else None
    if suite is None or folder is None:
        return Report(tuple(make_studies(records, reference=reference)))
    names = {name: label for name, (_, label) in runs_by_name(suite).items()}
    position = {name: number for number, name in enumerate(names)}
    ordered = sorted(records, key=lambda record: position.get(record.name, len(position)))
    studies = make_studies(ordered, reference=reference, names=names)
    speeds = read_step_times(folder)
    timed = (replace(study, step_times=_step_times(study, speeds)) for study in studies)
    judgements = tuple(judge_suite(suite, records))
    missing = tuple(_missing(suite, records, reasons or {}))
    return Report(tuple(timed), judgements, suite.name, suite.description, missing)


def _missing(suite: Suite, records: Sequence[RunRecord], reasons: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each model and task of a suite of which runs are not there, not even failed."""
    present = {record.name for record in records}
    begun: dict[Condition, list[bool]] = {}
    for name, (condition, _) in runs_by_name(suite).items():
        begun.setdefault(condition, []).append(name in present)
    for condition, there in begun.items():
        name = f"{model_of(suite, condition)} on {task_of(suite, condition)}"
        if not any(there):
            yield f"There is no run of {name}: {reasons.get(name, 'none that was asked for began')}."
        elif not all(there):
            yield f"Of {name} there are {sum(there)} of {len(there)} runs; run the suite again to go on."


def _step_times(study: Study, speeds: Sequence[StepTime]) -> Mapping[str, StepTime]:
    """Return how long a step of each result takes beside the reference's, if the reference is the study's."""
    return {
        each.label: each
        for each in speeds
        if (each.task, each.reference) == (study.task, study.results[0].label)
        and Path(each.model).name == Path(study.model).name
    }
