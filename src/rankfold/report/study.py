"""Studies and the report: records grouped by model, task and data, compared, and judged by claims."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from rankfold.bench.statistics.claims import JudgedClaim, Rules
from rankfold.bench.statistics.comparison import (
    LEVEL,
    Difference,
    baselines_of,
    knows_metric,
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
from rankfold.report.format import join_names
from rankfold.report.pictures import PictureGrid, study_grid
from rankfold.report.results import Result, make_results
from rankfold.report.selection import (
    Choice,
    TunedMethod,
    is_trial,
    make_choices,
    make_tuned_methods,
    without_earlier_rungs,
)
from rankfold.runs.record import RunRecord, measured_on, note_different_data

# The number of parts of a group's key before those of the data.
_WITHOUT_DATA = 5


@dataclass(frozen=True, slots=True)
class Study:
    """All results for one model, task and data; the first one is the reference.

    Attributes:
        model: Name of the base model.
        task: Name of the task.
        metric: Name of the metric that is compared; larger is better, but for losses and errors.
        results: One per method; the reference first.
        baselines: The metric of predictions that need no training, such as the majority class.
        examples: How many held-out examples all runs share.
        repeats: How many runs were left out because a later run of the same method and seed is there.
        choices: Selections of `rankfold fit`; runs of their earlier rungs are in no result.
        tuned: Methods that were tuned, with their trials, which are in no result either.
        scoring: How answers were scored; None for tasks without answers.
        step_times: Times of a step relative to the reference, measured in turns, by label of the result.
        pictures: Pictures that the methods have drawn; None if they drew none.
    """

    model: str
    task: str
    metric: str
    results: tuple[Result, ...]
    baselines: Mapping[str, float]
    examples: int
    repeats: int
    choices: tuple[Choice, ...] = ()
    tuned: tuple[TunedMethod, ...] = ()
    scoring: str | None = None
    step_times: Mapping[str, StepTime] = field(default_factory=dict[str, StepTime])
    pictures: PictureGrid | None = None

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Every run, failed ones too, without trials."""
        return tuple(record for _, record in self.labelled_runs())

    def labelled_runs(self) -> list[tuple[str, RunRecord]]:
        """Return every run with the label of its result; runs of earlier rungs have all options in theirs."""
        runs = [(result.label, run) for result in self.results for run in result.runs]
        in_results = {id(run) for _, run in runs}
        earlier = (pair for choice in self.choices for pair in choice.labelled_runs())
        return [*runs, *((label, run) for label, run in earlier if id(run) not in in_results)]

    def labelled_trials(self) -> list[tuple[str, RunRecord]]:
        """Return every trial of tuning with the label of the result that it was made for."""
        return [(method.label, run) for method in self.tuned for run in method.trials]

    @property
    def is_tuned(self) -> bool:
        """Whether any result was tuned."""
        return any(result.tuning for result in self.results)


def make_studies(
    records: Sequence[RunRecord],
    *,
    reference: str | None = None,
    names: Mapping[str, str] | None = None,
    rules: Rules | None = None,
) -> list[Study]:
    """Sort records into studies and compare each method with the reference.

    Args:
        records: Runs of any methods, models and tasks, in the order of their results.
        reference: Label of the result that the others are compared with; the first one if not given.
        names: Labels of results by the names of their runs; made of the settings that differ if not given.
        rules: The margin of an equivalence, stated before the runs; nothing is called equivalent if None.

    Raises:
        DataError: If there are no records, or only trials of tuning.
        SpecError: If no study has a result with the reference's label.
    """
    if not records:
        raise DataError("there are no runs to report; run `rankfold train` or `rankfold compare` first.")
    groups = _group([record for record in records if not is_trial(record)], with_data=True)
    if not groups:
        raise DataError(
            f"all {len(records)} runs are trials of tuning; run the suite to its end; finished runs are kept."
        )
    note_different_data([record for group in groups.values() for record in group])
    trials = _group([record for record in records if is_trial(record)], with_data=False)
    comparable = [without_earlier_rungs(group) or group for group in groups.values()]
    results = make_results(comparable, names)
    labels = {result.label for study in results for result in study}
    if reference is not None and reference not in labels:
        raise unknown_name("reference", reference, labels)
    return [
        replace(
            _study(runs, study, reference, rules),
            choices=make_choices(group),
            tuned=make_tuned_methods(trials.get(key[:_WITHOUT_DATA], ()), study),
        )
        for (key, group), runs, study in zip(groups.items(), comparable, results, strict=True)
    ]


def _group(records: Sequence[RunRecord], *, with_data: bool) -> dict[tuple[str, ...], list[RunRecord]]:
    """Return the runs of each model and task; trials have other data, cut from the training split."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        task = record.task
        scoring = task.scoring or "likelihood"  # the scoring of records without one
        key = (record.model.name, record.model.sha256, task.name, task.metric, scoring)
        groups.setdefault((*key, *map(str, measured_on(record))) if with_data else key, []).append(record)
    return groups


def _study(
    records: Sequence[RunRecord], results: Sequence[Result], reference: str | None, rules: Rules | None
) -> Study:
    count = sum(len(result.runs) for result in results)
    results = sorted(results, key=lambda result: result.label != reference)  # stable
    metric = records[0].task.metric
    examples = shared_examples([record for result in results for record in result.records])
    results = [replace(result, score=mean_score(result.records, metric, examples)) for result in results]
    return Study(
        model=records[0].model.name,
        task=records[0].task.name,
        metric=metric,
        results=tuple(_compare(results, metric, examples, rules)),
        baselines=baselines_of([record for result in results for record in result.records]),
        examples=len(examples),
        repeats=len(records) - count,
        scoring=records[0].task.scoring,
    )


def _compare(
    results: Sequence[Result], metric: str, examples: Sequence[int | str], rules: Rules | None
) -> list[Result]:
    """Return the results with differences to the first one, and verdicts corrected together."""
    first = replace(results[0], verdict="reference")
    differences = [_difference(result, first, metric, examples) for result in results[1:]]
    known = [difference for difference in differences if difference]
    answers = iter(verdicts(known, margin=rules and rules.margin))
    level = 1 - (1 - LEVEL) / max(1, len(known))
    return [
        first,
        *(
            replace(
                result,
                difference=difference,
                verdict=next(answers),
                detectable=difference.estimate.detectable(level),
            )
            if difference
            else replace(result, why=_obstacle(result, first, metric, examples))
            for result, difference in zip(results[1:], differences, strict=True)
        ),
    ]


def _obstacle(result: Result, first: Result, metric: str, examples: Sequence[int | str]) -> str:
    """Return why a result cannot be compared with the reference; empty if it can."""
    if not {run.training.seed for run in result.records} & {run.training.seed for run in first.records}:
        return "no finished seed in common"
    if not examples:
        return "no example in common"
    is_known = knows_metric([*result.records, *first.records], metric)
    return "" if is_known else f"the metric '{metric}' is unknown"


def _difference(
    result: Result, first: Result, metric: str, examples: Sequence[int | str]
) -> Difference | None:
    if _obstacle(result, first, metric, examples):
        return None
    ours, reference = (scores_of(item.records, examples, metric) for item in (result, first))
    return paired_difference(ours, reference, metric)


@final
@dataclass(frozen=True, slots=True)
class Report:
    """All content of a report, for the terminal, the page, Markdown and CSV.

    Attributes:
        studies: One for each model and task; at least one.
        judgements: The verdict on each claim of the suite.
        name: The suite's name; empty without a suite.
        description: The suite's description, one sentence.
        missing: A sentence for each model and task with missing runs, with the reason if it is known.
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
    """Compare runs, and judge the claims of their suite.

    Args:
        records: The runs. Results have the order of the suite, or else that of their first runs.
        folder: The folder of the runs, where their suite is saved too.
        reference: Label of the result that the others are compared with; the first one if not given.
        reasons: Why no run of a model and a task began (`rankfold.bench.suites.outcomes.unstarted_reasons`).

    Raises:
        DataError: If there are no runs, or the suite cannot be read.
        SpecError: If no study has a result with the reference's label.
    """
    suite = load_suite(folder) if folder else None
    if suite is None or folder is None:
        studies = make_studies(records, reference=reference)
        return Report(tuple(_with_pictures(study, folder) for study in studies))
    names = {name: label for name, (_, label) in runs_by_name(suite).items()}
    position = {name: number for number, name in enumerate(names)}
    in_order = sorted(records, key=lambda record: position.get(record.name, len(position)))
    studies = make_studies(in_order, reference=reference, names=names, rules=suite.rules)
    speeds = read_step_times(folder)
    with_times = (
        _with_pictures(replace(study, step_times=_step_times(study, speeds)), folder) for study in studies
    )
    judgements = tuple(judge_suite(suite, records))
    missing = tuple(_missing(suite, records, reasons or {}))
    return Report(tuple(with_times), judgements, suite.name, suite.description, missing)


def _with_pictures(study: Study, folder: Path | None) -> Study:
    return study if folder is None else replace(study, pictures=study_grid(study.labelled_runs(), folder))


def _missing(suite: Suite, records: Sequence[RunRecord], reasons: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each model and task of a suite with runs that have no record."""
    present = {record.name for record in records}
    labels: dict[Condition, list[str]] = {}
    missing: dict[Condition, Counter[str]] = {}
    for name, (condition, label) in runs_by_name(suite).items():
        labels.setdefault(condition, []).append(label)
        missing.setdefault(condition, Counter()).update([] if name in present else [label])
    for condition, counts in missing.items():
        name = f"{model_of(suite, condition)} on {task_of(suite, condition)}"
        total = len(labels[condition])
        if counts.total() == total:
            yield f"There is no run of {name}: {reasons.get(name, 'none was started')}."
        elif counts:
            rows = join_names([f"{label} ({count})" for label, count in counts.items()])
            done = f"{total - counts.total()} of {total} runs of {name} are there"
            yield f"{done}; run the suite again for the others: {rows}."


def _step_times(study: Study, speeds: Sequence[StepTime]) -> Mapping[str, StepTime]:
    """Return the step times of the study's results that were measured against its reference."""
    return {
        time.label: time
        for time in speeds
        if (time.task, time.reference) == (study.task, study.results[0].label)
        and Path(time.model).name == Path(study.model).name
    }
