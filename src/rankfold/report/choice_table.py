"""A choice as plain rows and words: for the terminal, for Markdown and for the page."""

from collections.abc import Sequence

from rankfold.bench.fit.halving import like_guessing
from rankfold.bench.statistics.scores import mean_score, shared_examples
from rankfold.report.choice import Choice, Contender
from rankfold.report.words import metric_name, range_text, score_text
from rankfold.runs.record import RunRecord


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
    guessing = like_guessing(runs)
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
    """Return the table of a choice: one row per composition, the chosen one first."""
    return [_cells(each, len(choice.steps)) for each in choice.contenders]


def _cells(contender: Contender, rungs: int) -> list[str]:
    scores = [_score(run) for run in contender.runs]
    trainable = max(run.parameters.trainable for run in contender.runs)
    missing = [""] * (rungs - len(scores))
    return [contender.label, f"{trainable:,}" if trainable else "–", *scores, *missing, contender.outcome]


def _score(run: RunRecord) -> str:
    if run.status == "failed":
        return "failed"
    interval = mean_score([run], run.task.metric, shared_examples([run]))
    return f"{score_text(interval)} {range_text(interval)}".strip()
