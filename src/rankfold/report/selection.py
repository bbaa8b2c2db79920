"""Selection of settings: the rungs of `rankfold fit`, and the trials of tuning."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rankfold.bench.statistics.comparison import (
    held_out_loss,
    mean_score,
    not_above_baseline,
    rank_records,
    shared_examples,
    stored_score,
)
from rankfold.bench.suites.search import edge_names
from rankfold.report.format import join_names, metric_name, range_text, score_text
from rankfold.report.results import Result, Settings, method_settings
from rankfold.runs.record import FitInfo, RunRecord, TuningInfo
from rankfold.runs.records import label_as_stored, label_with_all, value_text

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
        budget: The limit that all of them kept to, as text.
        steps: Updates of each rung.
        contenders: The chosen one first, then by how far they came.
    """

    budget: str
    steps: tuple[int, ...]
    contenders: tuple[Contender, ...]

    def labelled_runs(self) -> Iterator[tuple[str, RunRecord]]:
        """Yield every run with its composition's label."""
        return ((contender.label, run) for contender in self.contenders for run in contender.runs)


def make_choices(records: Sequence[RunRecord]) -> tuple[Choice, ...]:
    """Return the choices that the runs were made for; none for runs of no `rankfold fit`."""
    choices: dict[tuple[str, tuple[int, ...], int], list[RunRecord]] = {}
    for record in records:
        if record.fit is not None and record.fit.role == "candidate":
            key = (record.fit.budget, record.fit.steps, record.training.seed)
            choices.setdefault(key, []).append(record)
    return tuple(Choice(budget, steps, _contenders(runs)) for (budget, steps, _), runs in choices.items())


def without_earlier_rungs(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs that can be compared: of a choice, the reference and then the runs of its last rung."""
    parts = [(record.fit, record) for record in records]
    unrelated = [record for part, record in parts if part is None]
    references = [record for part, record in parts if part is not None and part.role == "reference"]
    last = [
        record
        for part, record in parts
        if part is not None and part.role == "candidate" and part.rung == len(part.steps)
    ]
    return [*references, *rank_records(last), *unrelated] if last else [*references, *unrelated]


def _contenders(records: Sequence[RunRecord]) -> tuple[Contender, ...]:
    """Return the outcome of each composition; those of the last rung come first."""
    rungs: dict[int, list[tuple[FitInfo, RunRecord]]] = {}
    for record in records:
        if record.fit is not None:
            rungs.setdefault(record.fit.rung, []).append((record.fit, record))
    contenders: dict[str, Contender] = {}
    for number in sorted(rungs, reverse=True):
        part = rungs[number][0][0]
        order = rank_records([record for _, record in rungs[number]])
        for position, record in enumerate(order):
            label = _label(record)
            if label not in contenders:
                runs = [run for run in records if _label(run) == label]
                runs.sort(key=lambda run: run.fit.rung if run.fit else 0)
                contenders[label] = Contender(label, tuple(runs), _outcome(part, position, order))
    return tuple(contenders.values())


def _label(record: RunRecord) -> str:
    """Return the composition of a run, with the type that it is stored in."""
    return label_as_stored(record.method.name, record.method.options, record.request.stored_type)


def _outcome(part: FitInfo, position: int, order: Sequence[RunRecord]) -> str:
    """Return whether the run at a position of its rung was chosen, went on, or was dropped, and why."""
    record, last_kept = order[position], order[min(part.kept, len(order)) - 1]
    if record.status == "failed":
        return f"failed in rung {part.rung}: {' '.join((record.error or '').split())}"
    if position < part.kept:
        return CHOSEN if part.rung == len(part.steps) else f"went on from rung {part.rung}"
    metric = record.task.metric
    text = f"dropped in rung {part.rung}, place {position + 1} of {len(order)}"
    if stored_score(record) != stored_score(last_kept):
        return text
    is_tie = held_out_loss(record) == held_out_loss(last_kept)
    return f"{text}, by {'size' if is_tie else 'loss'} at equal {metric.replace('_', ' ')}"


def choice_text(choice: Choice) -> str:
    """Return how the choice was made, and its limits."""
    first = choice.contenders[0].runs[0]
    rows = f"{first.data.rows.get('validation', 0):,}"
    metric = metric_name(first.task.metric)
    return (
        f"{len(choice.contenders)} compositions of at most {choice.budget}, as large as it allows. "
        f"Every rung trained from the beginning. The best by {metric} on {rows} rows held "
        "out of the training split went on; the loss decided between equals. This is one seed and few rows: "
        "where intervals overlap, a dropped composition may be as good as the chosen one. It was picked "
        "on these rows, which flatters it; measure it on the validation split, which was not used here."
        + "".join(map(_rung_text, _rungs(choice)))
    )


def _rungs(choice: Choice) -> list[list[RunRecord]]:
    """Return the runs of each rung."""
    runs = [run for contender in choice.contenders for run in contender.runs]
    numbers = range(1, len(choice.steps) + 1)
    return [[run for run in runs if run.fit and run.fit.rung == number] for number in numbers]


def _rung_text(runs: Sequence[RunRecord]) -> str:
    """Return a warning about a rung that was too short; "" if it was long enough."""
    guessing = not_above_baseline(runs)
    if not 2 * len(guessing) > len(runs):
        return ""
    return (
        f" In the rung of {runs[0].training.steps:,} steps {len(guessing)} of {len(runs)} were not separated "
        "from guessing, so it says little; make it longer."
    )


def choice_columns(choice: Choice) -> list[str]:
    """Return the headings of the table of a choice."""
    rungs = [f"rung {number}: {steps:,} steps" for number, steps in enumerate(choice.steps, start=1)]
    return ["composition", "trainable", *rungs, "outcome"]


def choice_cells(choice: Choice) -> list[list[str]]:
    """Return the table of a choice: one row per composition, the chosen one first."""
    return [_contender_cells(contender, len(choice.steps)) for contender in choice.contenders]


def _contender_cells(contender: Contender, rungs: int) -> list[str]:
    scores = [_score(run) for run in contender.runs]
    trainable = max(run.parameters.trainable for run in contender.runs)
    missing = [""] * (rungs - len(scores))
    return [contender.label, f"{trainable:,}" if trainable else "–", *scores, *missing, contender.outcome]


def _score(run: RunRecord) -> str:
    if run.status == "failed":
        return "failed"
    interval = mean_score([run], run.task.metric, shared_examples([run]))
    return f"{score_text(interval)} {range_text(interval)}".strip()


@dataclass(frozen=True, slots=True)
class TunedMethod:
    """The trials of one method, and the values that were chosen.

    Attributes:
        label: The result it was tuned for; other results of the same sweep may use its values too.
        trials: The runs on this task, in the order they were made; none if other tasks chose the values.
        tuning: Chosen values with their score; None as long as no run has used them.
    """

    label: str
    trials: tuple[RunRecord, ...]
    tuning: TuningInfo | None

    def points(self) -> list[tuple[Mapping[str, object], float | None]]:
        """Return the values tried with the scores that decided, None for a failure.

        Records of version 0.1.0 have no curve; theirs are the scores of the trials.
        """
        if self.tuning and self.tuning.curve:
            return [
                (
                    {name: value for name, value in point.items() if name != "score"},
                    score if isinstance(score := point.get("score"), float | int) else None,
                )
                for point in self.tuning.curve
            ]
        return [(trial_values(trial), trial.metrics.get(trial.task.metric)) for trial in self.trials]

    @property
    def edges(self) -> list[str]:
        """The names whose chosen value is the least or the greatest that was tried."""
        curve = [{**values, "score": score} for values, score in self.points()]
        return edge_names(self.tuning, curve) if self.tuning else []


def is_trial(record: RunRecord) -> bool:
    """Return whether a run was made to choose settings: it is measured on rows cut from training."""
    return record.tuning is not None and record.tuning.trial is not None


def make_tuned_methods(trials: Sequence[RunRecord], results: Sequence[Result]) -> tuple[TunedMethod, ...]:
    """Sort the trials of a study by the method that they were made for.

    Args:
        trials: Runs for which `is_trial` holds.
        results: The results of the study.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in trials:
        groups.setdefault(_fixed_key(record), []).append(record)
    by_key = {_fixed_key(result.runs[0]): result for result in reversed(results) if result.tuning}
    order = {result.label: position for position, result in enumerate(results)}
    methods = [_tuned_method(records, by_key.get(key)) for key, records in groups.items()]
    methods += _tuned_elsewhere(results, methods)
    return tuple(sorted(methods, key=lambda method: order.get(method.label, len(order))))


def _tuned_elsewhere(results: Sequence[Result], methods: Sequence[TunedMethod]) -> list[TunedMethod]:
    """Return the methods whose values other tasks chose; of a sweep, which has one curve, the first."""
    curves = {json.dumps(method.tuning.curve) for method in methods if method.tuning}
    others: list[TunedMethod] = []
    for result in results:
        if result.tuning and result.tuning.curve and json.dumps(result.tuning.curve) not in curves:
            curves.add(json.dumps(result.tuning.curve))
            others.append(TunedMethod(result.label, (), result.tuning))
    return others


def trial_values(record: RunRecord) -> Mapping[str, object]:
    """Return the values that a trial tried."""
    return record.tuning.values if record.tuning else {}


def _tuned_method(records: Sequence[RunRecord], result: Result | None) -> TunedMethod:
    label = result.label if result else label_with_all(records[0].method.name, _fixed_settings(records[0]))
    latest = {record.tuning.trial: record for record in records if record.tuning}
    in_order = tuple(latest[number] for number in sorted(latest, key=lambda number: number or 0))
    return TunedMethod(label, in_order, result.tuning if result else None)


def _fixed_key(record: RunRecord) -> str:
    """Return the same text for all trials of a method and its result, in whatever order settings stand."""
    return json.dumps([record.method.name, _fixed_settings(record)], sort_keys=True)


def _fixed_settings(record: RunRecord) -> Settings:
    """Return the settings of a method that its trials do not vary."""
    values = trial_values(record)
    return {key: value for key, value in method_settings(record).items() if key not in values}


TUNING_COLUMNS = ("method", "trials", "tried", "chosen")


def tuning_text(methods: Sequence[TunedMethod]) -> str:
    """Return how the methods of a study were tuned, and where a best value is the first or the last."""
    first = next((method.trials[0] for method in methods if method.trials), None)
    subject = "Every tuned method got the same number of trials, measured "
    if first is None:
        where = "on other tasks of the suite, which share the values: the scores are means over these."
    else:
        where = (
            f"in {metric_name(first.task.metric)} on {first.data.rows.get('validation', 0):,} rows cut from "
            f"the training split, with seed {first.training.seed}."
        )
    edges = [method.label for method in methods if method.edges]
    warning = f" At the edge of its values is the best of {join_names(edges)}." if edges else ""
    return (
        f"{subject}{where} The table has the best trial, or the first of equals. The methods of one sweep "
        f"are tuned once, with the first of them.{warning}"
    )


def tuning_cells(method: TunedMethod) -> list[str]:
    """Return one row of the table: label, count, values with their scores, chosen values."""
    points = method.points()
    trials = "; ".join(point_text(*point) for point in points)
    return [method.label, str(len(points)), trials, chosen_text(method)]


def point_text(values: Mapping[str, object], score: float | None) -> str:
    """Return tried values with their score, "learning_rate=0.001: 0.861"."""
    return f"{_values_text(values)}: {'failed' if score is None else f'{score:.3f}'}"


def chosen_text(method: TunedMethod) -> str:
    """Return the chosen values, and whether they are at an edge; "–" as long as no run has used them."""
    if method.tuning is None:
        return "–"
    return _values_text(method.tuning.values) + (" (at the edge)" if method.edges else "")


def is_chosen(method: TunedMethod, values: Mapping[str, object]) -> bool:
    """Return whether tried values were chosen."""
    return method.tuning is not None and dict(values) == dict(method.tuning.values)


def _values_text(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value_text(value)}" for name, value in values.items())
