"""Tuning: the trials of each variant's search, run in rounds, and the values chosen from them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from rankfold.bench.statistics.comparison import goodness
from rankfold.bench.suites.outcomes import Outcome, check_none_elsewhere, raise_common_error, record_purpose
from rankfold.bench.suites.search import Search, Space, Values
from rankfold.bench.suites.suite import Condition, Suite, Variant, trial_name
from rankfold.errors import SpecError
from rankfold.runs.record import TuningInfo
from rankfold.runs.request import RunRequest, overlay

logger = logging.getLogger("rankfold.bench")

Key = tuple[Condition, str]
"""Model and task, and the label of the method that is tuned."""

RunBatch = Callable[[Sequence[RunRequest], str], list[Outcome]]
"""Does runs, which are called as the second argument says where progress is shown."""


@dataclass(slots=True)
class OngoingSearch:
    """A search under way.

    Attributes:
        method: Whose settings are searched.
        space: Where.
        search: What to try next.
        trials: How many there will be.
        done: How many there were.
        best: What was best so far, as the record of a run with it says it; None before the first trial.
        best_goodness: How good that was; more is better.
    """

    method: Variant
    space: Space
    search: Search
    trials: int
    done: int = 0
    best: TuningInfo | None = None
    best_goodness: float = -math.inf


def tune(suite: Suite, out: Path, run_batch: RunBatch) -> tuple[list[Outcome], dict[Key, TuningInfo]]:
    """Run the trials in rounds, one batch for all searches, and return the chosen values.

    Args:
        suite: What to tune.
        out: The folder that gets a folder for each trial.
        run_batch: Does the runs.

    Raises:
        SpecError: If the methods would not get equally many trials.
        TrainingError: If every trial failed.
        BusyError: If another process is at a trial, without whose score nothing can be chosen.
    """
    searches = new_searches(suite)
    outcomes: list[Outcome] = []
    while suggestions := [
        (key, values) for key, state in searches.items() for values in state.search.suggest()
    ]:
        requests: list[RunRequest] = []
        parts: list[TuningInfo] = []
        for key, values in suggestions:
            state = searches[key]
            state.done += 1
            requests.append(trial_request(suite, out, key, state, values, state.done))
            parts.append(TuningInfo(state.trials, state.done, values))
        batch = run_batch(requests, "trials")
        check_none_elsewhere(batch)
        batch = [record_purpose(outcome, part) for outcome, part in zip(batch, parts, strict=True)]
        outcomes += batch
        for key in dict.fromkeys(key for key, _ in suggestions):
            indices = [index for index, (other_key, _) in enumerate(suggestions) if other_key == key]
            _report_scores(
                searches[key], [batch[index] for index in indices], [parts[index] for index in indices]
            )
    if outcomes and all(outcome.error for outcome in outcomes):
        raise_common_error(outcomes)
    _log_edges(searches)
    return outcomes, {key: state.best for key, state in searches.items() if state.best}


def new_searches(suite: Suite) -> dict[Key, OngoingSearch]:
    """Return a new search for each condition and entry of a suite that has something to tune.

    Raises:
        SpecError: If the methods would not get equally many trials.
    """
    if suite.tuning is None:
        return {}
    searches: dict[Key, OngoingSearch] = {}
    for condition in suite.conditions():
        for row in suite.variants_at(condition):
            space = suite.tuning.space if row.method.space is None else row.method.space
            if space and row.label == row.search_label:
                trials = suite.tuning.trials_of(space)
                searches[condition, row.label] = OngoingSearch(
                    row.method, space, suite.tuning.search(space), trials
                )
    counts = {label: state.trials for (_, label), state in searches.items()}
    if len(set(counts.values())) > 1:
        count_list = ", ".join(f"{label} has {count}" for label, count in counts.items())
        raise SpecError(
            f"the methods of the suite '{suite.name}' do not get equally many trials: {count_list}; "
            "give every grid as many values."
        )
    return searches


def trial_requests(suite: Suite, out: Path) -> list[RunRequest]:
    """Return all trials; those that depend on the outcome of others have the values of the first."""
    requests: list[RunRequest] = []
    for key, state in new_searches(suite).items():
        suggestions = state.search.suggest()
        values = suggestions + suggestions[-1:] * (state.trials - len(suggestions))
        requests += [
            trial_request(suite, out, key, state, trial_values, number)
            for number, trial_values in enumerate(values, start=1)
        ]
    return requests


def trial_request(
    suite: Suite, out: Path, key: Key, state: OngoingSearch, values: Values, number: int
) -> RunRequest:
    """Return one trial: a run that is measured on rows cut from the training split."""
    assert suite.tuning is not None, "only a suite with tuning has trials"
    condition, label = key
    settings = overlay(suite.tuning.base, suite.tuning.tasks.get(condition.task, {}))
    return suite.request(
        condition,
        state.method.with_values(values),
        suite.tuning.seed,
        out / trial_name(suite, condition, label, number),
        {**settings, "hold_out": True},
    )


def _report_scores(state: OngoingSearch, outcomes: Sequence[Outcome], parts: Sequence[TuningInfo]) -> None:
    """Report scores to a search, and remember the best; the first of equals stays."""
    scores = [goodness(outcome.record) if outcome.record else -math.inf for outcome in outcomes]
    state.search.report(scores)
    for outcome, score, part in zip(outcomes, scores, parts, strict=True):
        if state.best is None or score > state.best_goodness:
            metric = outcome.record and outcome.record.metrics.get(outcome.record.task.metric)
            state.best, state.best_goodness = replace(part, trial=None, score=metric), score


def _log_edges(searches: Mapping[Key, OngoingSearch]) -> None:
    """Log where the best value is the first or the last of a grid: there may be a better one beyond it."""
    for (condition, label), state in searches.items():
        if state.best is None:
            continue
        for name, value in state.best.values.items():
            if _is_edge(value, state.space[name]):
                logger.info(
                    "the best %s of %s%s is %s, at the edge of its grid; a wider one may have a better.",
                    name,
                    label,
                    f" on {condition.task}" if condition.task else "",
                    value,
                )


def _is_edge(value: object, values: object) -> bool:
    """Whether a value is the least or the greatest of a grid of numbers with others between them."""
    grid = cast("list[object]", values) if isinstance(values, list) else []
    numbers = [value for value in grid if isinstance(value, int | float)]
    edges = {min(numbers), max(numbers)} if numbers else set[float]()
    return value in edges and len(numbers) > len(edges)
