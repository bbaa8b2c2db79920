"""How the methods were tuned, as plain rows and words: for Markdown and for the page."""

from collections.abc import Mapping

from rankfold.report.study import Study
from rankfold.report.tuning import Tuned, tried
from rankfold.report.words import metric_name
from rankfold.runs.record import RunRecord
from rankfold.runs.records import value_text

TUNING_COLUMNS = ("method", "trials", "tried", "chosen")


def tuning_text(study: Study) -> str:
    """Return how the methods of a study were tuned."""
    first = next(run for _, run in study.labelled_trials())
    rows = f"{first.data.rows.get('validation', 0):,}"
    return (
        "Every method that was tuned got the same number of trials, measured in "
        f"{metric_name(study.metric)} on {rows} rows cut from the training split, with seed "
        f"{first.training.seed}. The best went into the table, the first of equals. Methods that one sweep "
        "is made of are tuned once, as the first of them."
    )


def tuning_cells(tuned: Tuned) -> list[str]:
    """Return one row of the table: what was tried with what score, and what was chosen."""
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
