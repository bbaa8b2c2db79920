"""Tuning: the trials of each variant's search, run in rounds, and the values chosen from them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

from pydantic import JsonValue

from rankfold.bench.statistics.comparison import goodness
from rankfold.bench.suites.outcomes import Outcome, check_none_elsewhere, raise_common_error, record_purpose
from rankfold.bench.suites.search import Search, Space, Values, edge_names
from rankfold.bench.suites.suite import Condition, Suite, Variant, trial_name
from rankfold.errors import SpecError
from rankfold.runs.record import TuningInfo
from rankfold.runs.request import RunRequest, overlay
from rankfold.tasks.metrics import is_smaller_better

logger = logging.getLogger("rankfold.bench")

Key = tuple[Condition, str]
"""Model and task, and the label of the method that is tuned."""

RunBatch = Callable[[Sequence[RunRequest], str], list[Outcome]]
"""Does runs, which are called as the second argument says where progress is shown."""


@dataclass(slots=True)
class OngoingSearch:
    """A search under way.

    Attributes:
        method: The method whose settings are searched.
        space: The values to choose from.
        search: Suggests the next trials.
        conditions: Where every suggestion is tried; it is judged by the mean over them.
        trials: The expected number of trials.
        curve: The values tried so far with their score, as records have them.
        best: The best values so far; None before the first trial.
        best_goodness: How good that was; more is better.
    """

    method: Variant
    space: Space
    search: Search
    conditions: tuple[Condition, ...]
    trials: int
    curve: list[dict[str, JsonValue]] = field(default_factory=list[dict[str, JsonValue]])
    best: TuningInfo | None = None
    best_goodness: float = -math.inf

    def choice(self) -> TuningInfo | None:
        """The chosen values with the number of trials that were made and all their scores."""
        return self.best and replace(self.best, trials=len(self.curve), curve=tuple(self.curve))


def tune(suite: Suite, out: Path, run_batch: RunBatch) -> tuple[list[Outcome], dict[Key, TuningInfo]]:
    """Run the trials in rounds, one batch for all searches, and return the chosen values.

    Searches that end early refine near their best value until every method had as many trials as any other.

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
    while suggestions := _suggestions(searches):
        outcomes += _run_round(suite, out, searches, suggestions, run_batch)
    if outcomes and all(outcome.error for outcome in outcomes):
        raise_common_error(outcomes)
    _log_edges(searches)
    return outcomes, _choices(suite, searches)


def _suggestions(searches: Mapping[Key, OngoingSearch]) -> dict[Key, list[Values]]:
    """Return the next trials of every search; once all have ended, those that had fewer than others."""
    suggestions = {key: state.search.suggest() for key, state in searches.items()}
    if not any(suggestions.values()):
        most = max((len(state.curve) for state in searches.values()), default=0)
        suggestions = {
            key: state.search.refine() if len(state.curve) < most else [] for key, state in searches.items()
        }
    return {key: values for key, values in suggestions.items() if values}


def _run_round(
    suite: Suite,
    out: Path,
    searches: Mapping[Key, OngoingSearch],
    suggestions: Mapping[Key, Sequence[Values]],
    run_batch: RunBatch,
) -> list[Outcome]:
    """Run the trials of one round, and report their scores to the searches."""
    trials = [
        (key, condition, values, len(searches[key].curve) + number)
        for key, suggested in suggestions.items()
        for number, values in enumerate(suggested, start=1)
        for condition in searches[key].conditions
    ]
    batch = run_batch(
        [
            trial_request(suite, out, (condition, key[1]), searches[key], values, number)
            for key, condition, values, number in trials
        ],
        "trials",
    )
    check_none_elsewhere(batch)
    scores: dict[Key, list[list[float]]] = {
        key: [[] for _ in suggested] for key, suggested in suggestions.items()
    }
    outcomes: list[Outcome] = []
    for outcome, (key, _, values, number) in zip(batch, trials, strict=True):
        state = searches[key]
        outcomes.append(record_purpose(outcome, TuningInfo(max(state.trials, number), number, values)))
        score = goodness(outcome.record) if outcome.record else -math.inf
        scores[key][number - len(state.curve) - 1].append(-math.inf if math.isnan(score) else score)
    for key, suggested in suggestions.items():
        _report_scores(searches[key], suggested, [mean(trial_scores) for trial_scores in scores[key]], batch)
    return outcomes


def new_searches(suite: Suite) -> dict[Key, OngoingSearch]:
    """Return a new search for each condition and entry of a suite that has something to tune.

    Where tasks share their values there is one search for each model, at the first of the conditions.

    Raises:
        SpecError: If the methods would not get equally many trials.
    """
    if suite.tuning is None:
        return {}
    searches: dict[Key, OngoingSearch] = {}
    for condition in suite.conditions():
        for row in suite.variants_at(condition):
            space = suite.tuning.space if row.method.space is None else row.method.space
            conditions = _searched_conditions(suite, condition, row.method)
            if space and row.label == row.search_label and condition == conditions[0]:
                trials = suite.tuning.trials_of(space)
                searches[condition, row.label] = OngoingSearch(
                    row.method, space, suite.tuning.search(space), conditions, trials
                )
    counts = {label: state.trials for (_, label), state in searches.items()}
    if len(set(counts.values())) > 1:
        count_list = ", ".join(f"{label} has {count}" for label, count in counts.items())
        raise SpecError(
            f"the methods of the suite '{suite.name}' do not get equally many trials: {count_list}; "
            "give every grid as many values."
        )
    return searches


def _searched_conditions(suite: Suite, condition: Condition, method: Variant) -> tuple[Condition, ...]:
    """Return where the values of a method at a condition are searched: there, or on the shared tasks."""
    assert suite.tuning is not None, "only a suite with tuning has searches"
    if not suite.tuning.shared:
        return (condition,)
    own_tasks = method.tasks or tuple(suite.tasks)
    tasks = [task for task in suite.tuning.shared if task in own_tasks] or own_tasks
    return tuple(Condition(condition.model, task) for task in tasks)


def _choices(suite: Suite, searches: Mapping[Key, OngoingSearch]) -> dict[Key, TuningInfo]:
    """Return the chosen values for every condition and searched variant."""
    choices: dict[Key, TuningInfo] = {}
    for condition in suite.conditions():
        for row in suite.variants_at(condition):
            if suite.tuning is None or row.label != row.search_label:
                continue
            state = searches.get((_searched_conditions(suite, condition, row.method)[0], row.label))
            if state and (choice := state.choice()):
                choices[condition, row.label] = choice
    return choices


def trial_requests(suite: Suite, out: Path) -> list[RunRequest]:
    """Return all trials; those that depend on the outcome of others have the values of the first."""
    requests: list[RunRequest] = []
    for key, state in new_searches(suite).items():
        suggestions = state.search.suggest()
        values = suggestions + suggestions[-1:] * (state.trials - len(suggestions))
        requests += [
            trial_request(suite, out, (condition, key[1]), state, trial_values, number)
            for number, trial_values in enumerate(values, start=1)
            for condition in state.conditions
        ]
    return requests


def trial_request(
    suite: Suite, out: Path, key: Key, state: OngoingSearch, values: Values, number: int
) -> RunRequest:
    """Return one trial: a run that is measured on rows cut from the training split.

    Each of the tasks that share values has a seed of its own: a rate that some seeds do not survive is less
    likely to look like the best.
    """
    assert suite.tuning is not None, "only a suite with tuning has trials"
    condition, label = key
    seed = (suite.tuning.seed + state.conditions.index(condition)) % 2**32
    settings = overlay(suite.tuning.base, suite.tuning.tasks.get(condition.task, {}))
    return suite.request(
        condition,
        state.method.with_values(values),
        seed,
        out / trial_name(suite, condition, label, number),
        {**settings, "hold_out": True},
    )


def _report_scores(
    state: OngoingSearch, suggested: Sequence[Values], scores: Sequence[float], batch: Sequence[Outcome]
) -> None:
    """Report scores to a search, and remember the curve and the best; the first of equals stays."""
    state.search.report(scores)
    is_error = any(
        is_smaller_better(outcome.record.task.metric) for outcome in batch if outcome.record is not None
    )
    for values, score in zip(suggested, scores, strict=True):
        metric = None if math.isinf(score) else -score if is_error else score
        state.curve.append({**values, "score": metric})
        if state.best is None or score > state.best_goodness:
            state.best = TuningInfo(state.trials, None, values, metric)
            state.best_goodness = score


def _log_edges(searches: Mapping[Key, OngoingSearch]) -> None:
    """Log where the best value is the first or the last that was tried: there may be a better one beyond."""
    for (condition, label), state in searches.items():
        choice = state.choice()
        for name in edge_names(choice) if choice else ():
            logger.info(
                "the best %s of %s%s is %s, at the edge of its grid; a wider one may have a better.",
                name,
                label,
                f" on {condition.task}" if condition.task else "",
                choice.values[name] if choice else None,
            )
