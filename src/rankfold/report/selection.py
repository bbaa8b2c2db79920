"""How a composition was chosen: the rungs of `rankfold fit`, who went on, and why the others did not."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rankfold.bench.statistics.comparison import (
    held_out_loss,
    mean_score,
    not_above_baseline,
    rank_records,
    shared_examples,
)
from rankfold.report.format import metric_name, range_text, score_text
from rankfold.report.results import Result, Settings, method_settings
from rankfold.runs.record import FitInfo, RunRecord, TuningInfo
from rankfold.runs.records import label_with_all, value_text

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
    return [*references, *rank_records(last), *others] if last else [*references, *others]


def _contenders(records: Sequence[RunRecord]) -> tuple[Contender, ...]:
    """Return what became of each composition, the rungs from the last to the first."""
    rungs: dict[int, list[tuple[FitInfo, RunRecord]]] = {}
    for record in records:
        if record.fit is not None:
            rungs.setdefault(record.fit.rung, []).append((record.fit, record))
    found: dict[str, Contender] = {}
    for number in sorted(rungs, reverse=True):
        part = rungs[number][0][0]
        order = rank_records([record for _, record in rungs[number]])
        for place, record in enumerate(order):
            label = label_with_all(record.method.name, record.method.options)
            if label not in found:
                runs = [other for other in records if _is_same(other, record)]
                runs.sort(key=lambda run: run.fit.rung if run.fit else 0)
                found[label] = Contender(label, tuple(runs), _outcome(part, place, order))
    return tuple(found.values())


def _is_same(one: RunRecord, other: RunRecord) -> bool:
    return (one.method.name, one.method.options) == (other.method.name, other.method.options)


def _outcome(part: FitInfo, place: int, order: Sequence[RunRecord]) -> str:
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


def choice_text(choice: Choice) -> str:
    """Return how the choice was made, and what it does not say."""
    first = choice.contenders[0].runs[0]
    rows = f"{first.data.rows.get('validation', 0):,}"
    metric = metric_name(first.task.metric)
    return (
        f"{len(choice.contenders)} compositions of at most {choice.budget}, one of each method, which uses "
        f"most of it. Every rung trained from the beginning, and the best by {metric} on {rows} rows held "
        "out of the training split went on, equal ones by their loss. One seed and few rows: a composition "
        "that was dropped may be as good as the chosen one where the intervals overlap. The chosen one was "
        "picked on these very rows, which flatters it; the validation split, which was not looked at, can "
        "tell how good it is." + "".join(map(_rung_text, _rungs(choice)))
    )


def _rungs(choice: Choice) -> list[list[RunRecord]]:
    """Return the runs of each rung."""
    runs = [run for each in choice.contenders for run in each.runs]
    numbers = range(1, len(choice.steps) + 1)
    return [[run for run in runs if run.fit and run.fit.rung == number] for number in numbers]


def _rung_text(runs: Sequence[RunRecord]) -> str:
    """Return what has to be said of a rung that was too short; nothing if it was not."""
    guessing = not_above_baseline(runs)
    if not 2 * len(guessing) > len(runs):
        return ""
    return (
        f" In the rung of {runs[0].training.steps:,} steps {len(guessing)} of {len(runs)} were not separated "
        "from guessing, so it says little: it should be longer."
    )


def choice_columns(choice: Choice) -> list[str]:
    """Return the headings of the table of a choice."""
    rungs = [f"rung {number}: {steps:,} steps" for number, steps in enumerate(choice.steps, start=1)]
    return ["composition", "trainable", *rungs, "outcome"]


def choice_cells(choice: Choice) -> list[list[str]]:
    """Return the table of a choice: one result per composition, the chosen one first."""
    return [_candidate_cells(each, len(choice.steps)) for each in choice.contenders]


def _candidate_cells(contender: Contender, rungs: int) -> list[str]:
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
class Tuned:
    """One method's trials.

    Attributes:
        label: The result it was tuned for; a result of the same sweep may have taken over its values.
        trials: The runs, in the order they were made.
        chosen: Values and score of what was taken; None as long as no run has used it.
    """

    label: str
    trials: tuple[RunRecord, ...]
    chosen: TuningInfo | None


def is_trial(record: RunRecord) -> bool:
    """Return whether a run was made to choose settings: it is measured on rows cut from training."""
    return record.tuning is not None and record.tuning.trial is not None


def make_tuned(trials: Sequence[RunRecord], rows: Sequence[Result]) -> tuple[Tuned, ...]:
    """Sort the trials of a study by the method that they were made for.

    Args:
        trials: Runs for which `is_trial` holds.
        rows: The rows of the study.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in trials:
        groups.setdefault(_shared_by(record), []).append(record)
    of_row = {_shared_by(result.runs[0]): result for result in reversed(rows) if result.tuning}
    order = {result.label: place for place, result in enumerate(rows)}
    found = [_tuned(records, of_row.get(shared)) for shared, records in groups.items()]
    return tuple(sorted(found, key=lambda each: order.get(each.label, len(order))))


def tried(record: RunRecord) -> Mapping[str, object]:
    """Return the values that a trial tries."""
    return record.tuning.values if record.tuning else {}


def _tuned(records: Sequence[RunRecord], result: Result | None) -> Tuned:
    label = result.label if result else label_with_all(records[0].method.name, _fixed(records[0]))
    latest = {record.tuning.trial: record for record in records if record.tuning}
    in_order = tuple(latest[number] for number in sorted(latest, key=lambda number: number or 0))
    return Tuned(label, in_order, result.tuning if result else None)


def _shared_by(record: RunRecord) -> str:
    """Return what the trials of a method have in common with its result, in whatever order it was written."""
    return json.dumps([record.method.name, _fixed(record)], sort_keys=True)


def _fixed(record: RunRecord) -> Settings:
    """Return the settings that are no trial's own."""
    changed = record.tuning.values if record.tuning else ()
    return {key: value for key, value in method_settings(record).items() if key not in changed}


TUNING_COLUMNS = ("method", "trials", "tried", "chosen")


def tuning_text(tuned: Sequence[Tuned]) -> str:
    """Return how the methods of a study were tuned."""
    first = tuned[0].trials[0]
    rows = f"{first.data.rows.get('validation', 0):,}"
    return (
        "Every method that was tuned got the same number of trials, measured in "
        f"{metric_name(first.task.metric)} on {rows} rows cut from the training split, with seed "
        f"{first.training.seed}. The best went into the table, the first of equals. Methods that one sweep "
        "is made of are tuned once, as the first of them."
    )


def tuning_cells(tuned: Tuned) -> list[str]:
    """Return one result of the table: what was tried with what score, and what was chosen."""
    return [tuned.label, str(len(tuned.trials)), "; ".join(map(trial_text, tuned.trials)), chosen_text(tuned)]


def trial_text(trial: RunRecord) -> str:
    """Return the values of a trial with its score, "learning_rate=0.001: 0.861"."""
    value = trial.metrics.get(trial.task.metric)
    return f"{_values_text(tried(trial))}: {'failed' if value is None else f'{value:.3f}'}"


def chosen_text(tuned: Tuned) -> str:
    """Return what was chosen; nothing as long as no run has used it."""
    return _values_text(tuned.chosen.values) if tuned.chosen else "–"


def is_chosen(tuned: Tuned, trial: RunRecord) -> bool:
    """Return whether the values of a trial were chosen."""
    return tuned.chosen is not None and dict(tried(trial)) == dict(tuned.chosen.values)


def _values_text(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value_text(value)}" for name, value in values.items())
