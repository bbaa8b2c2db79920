"""A suite from beginning to end: every method is tuned alike, then trained once with each seed."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from rankfold.bench.chosen import TuningPart
from rankfold.bench.executors.executor import Executor
from rankfold.bench.method import method_config
from rankfold.bench.record import RunRecord
from rankfold.bench.request import RunRequest
from rankfold.bench.runner import Outcome, raise_shared, run_all
from rankfold.bench.suite import Place, Suite, SuiteMethod
from rankfold.bench.suite_records import keep_suite
from rankfold.bench.tuning import Search, Space, Values
from rankfold.errors import SpecError
from rankfold.train.models import Kind
from rankfold.train.progress import Progress, Silent

logger = logging.getLogger("rankfold.bench")

Key = tuple[Place, str]
"""Model and task, and the label of the method that is tuned."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What tuning chose for a method in a place."""

    values: Values
    part: TuningPart


@dataclass(slots=True)
class _Tuned:
    """A search under way, and the best it has found."""

    method: SuiteMethod
    space: Space
    search: Search
    trials: int
    done: int = 0
    best: Chosen | None = None


def run_suite(
    suite: Suite,
    out: Path,
    *,
    executor: Executor | None = None,
    make_progress: Callable[[], Progress] = Silent,
    overwrite: bool = False,
) -> list[Outcome]:
    """Tune and train everything that is not done yet, and return the outcomes, trials first.

    Args:
        suite: What to run.
        out: The folder that gets a folder for each run.
        executor: Does the runs.
        make_progress: Gives one listener for each batch of runs and one for each run.
        overwrite: Do again what is done.

    Raises:
        SpecError: If a method or an option is unknown, or a value is not possible, before the first run.
        OutputExistsError: If a folder holds something that was not asked for.
        TrainingError: If every trial failed.
    """
    check_suite(suite, out)
    keep_suite(suite, out)

    def run_batch(requests: Sequence[RunRequest], described: str) -> list[Outcome]:
        return run_all(
            requests,
            make_progress=make_progress,
            executor=executor,
            overwrite=overwrite,
            described=described,
        )

    trials, chosen = _tune(suite, out, run_batch)
    values = {key: each.values for key, each in chosen.items()}
    outcomes = run_batch(suite.requests(out, values), "runs")
    return [*trials, *_with_choice(suite, chosen, outcomes)]


def check_suite(suite: Suite, out: Path) -> None:
    """Check the names and options of all runs before the first, so that a typo costs no time.

    Raises:
        SpecError: If a method or an option is unknown, a value is not possible, or the methods would not get
            equally many trials.
    """
    requests = all_requests(suite, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each run says again what there is to say of it
        for request in requests:
            kind = Kind(request.kind) if request.kind in set(Kind) else Kind.CLASSIFICATION
            method_config(request.method, request.options, kind, seed=request.seed)


def all_requests(suite: Suite, out: Path) -> list[RunRequest]:
    """Return all trials and all runs, with the first values of each search where others will be chosen.

    Raises:
        SpecError: If they cannot be made.
    """
    searches = _searches(suite)
    trials = [
        _trial(suite, place, each.method, values, out / suite.run_name(place, label, f"trial{number}"))
        for (place, label), each in searches.items()
        for number, values in enumerate(_first_values(each), start=1)
    ]
    return [*trials, *suite.requests(out)]


def _first_values(tuned: _Tuned) -> list[Values]:
    """Return as many values as there will be trials; those of later rounds are not known yet."""
    asked = tuned.search.ask()
    return asked + asked[-1:] * (tuned.trials - len(asked))


def _searches(suite: Suite) -> dict[Key, _Tuned]:
    """Return a new search for each place and entry that has something to tune."""
    if suite.tuning is None:
        return {}
    found: dict[Key, _Tuned] = {}
    for place in suite.places():
        for row in suite.rows(place):
            space = suite.tuning.space if row.method.space is None else row.method.space
            if space and row.label == row.tuned_as:
                trials = suite.tuning.trials_of(space)
                found[place, row.label] = _Tuned(row.method, space, suite.tuning.search(space), trials)
    numbers = {label: each.trials for (_, label), each in found.items()}
    if len(set(numbers.values())) > 1:
        listed = ", ".join(f"{label} has {count}" for label, count in numbers.items())
        raise SpecError(
            f"the methods of the suite '{suite.name}' do not get equally many trials: {listed}; "
            "give every grid as many values."
        )
    return found


def _tune(
    suite: Suite, out: Path, run_batch: Callable[[Sequence[RunRequest], str], list[Outcome]]
) -> tuple[list[Outcome], dict[Key, Chosen]]:
    """Run the trials in rounds: what all searches ask for at once is one batch."""
    searches = _searches(suite)
    outcomes: list[Outcome] = []
    while True:
        asked = [(key, each, values) for key, each in searches.items() for values in each.search.ask()]
        if not asked:
            _tell_of_edges(searches)
            return outcomes, {key: each.best for key, each in searches.items() if each.best}
        requests: list[RunRequest] = []
        parts: list[TuningPart] = []
        for (place, label), each, values in asked:
            each.done += 1
            name = suite.run_name(place, label, f"trial{each.done}")
            requests.append(_trial(suite, place, each.method, values, out / name))
            parts.append(TuningPart(each.trials, each.done, values))
        batch = run_batch(requests, "trials")
        if all(outcome.error for outcome in batch):
            raise_shared(batch)
        batch = [_marked(outcome, part) for outcome, part in zip(batch, parts, strict=True)]
        outcomes += batch
        for key, each in searches.items():
            mine = [index for index, (other, *_) in enumerate(asked) if other == key]
            if mine:
                _tell(each, [batch[index] for index in mine], [parts[index] for index in mine])


def _tell(tuned: _Tuned, outcomes: Sequence[Outcome], parts: Sequence[TuningPart]) -> None:
    """Tell a search its scores, and keep the best; the first of equals stays."""
    scores = [_score(outcome.record) for outcome in outcomes]
    tuned.search.tell(scores)
    for score, part in zip(scores, parts, strict=True):
        best = -math.inf if tuned.best is None else tuned.best.part.score
        if tuned.best is None or score > (-math.inf if best is None else best):
            shown = score if math.isfinite(score) else None
            tuned.best = Chosen(dict(part.values), replace(part, trial=None, score=shown))


def _tell_of_edges(searches: Mapping[Key, _Tuned]) -> None:
    """Say where the best value is the first or the last of a grid: there may be a better one beyond it."""
    for (place, label), each in searches.items():
        for name, value in (each.best.values if each.best else {}).items():
            if _is_edge(value, each.space[name]):
                logger.info(
                    "the best %s of %s%s is %s, at the edge of its grid; a wider one may have a better.",
                    name,
                    label,
                    f" on {place.task}" if place.task else "",
                    value,
                )


def _is_edge(value: object, values: object) -> bool:
    """Whether a value is the least or the greatest of a grid of numbers with others between them."""
    grid = cast("list[object]", values) if isinstance(values, list) else []
    numbers = [each for each in grid if isinstance(each, int | float)]
    edges = {min(numbers), max(numbers)} if numbers else set[float]()
    return value in edges and len(numbers) > len(edges)


def _score(record: RunRecord | None) -> float:
    if record is None or record.status == "failed":
        return -math.inf
    return record.metrics[record.task.metric]


def _trial(suite: Suite, place: Place, method: SuiteMethod, values: Values, out: Path) -> RunRequest:
    assert suite.tuning is not None, "only a suite with tuning has trials"
    changes = {**suite.tuning.base, "hold_out": True}
    return suite.request(place, method.with_values(values), suite.tuning.seed, out, changes)


def _with_choice(suite: Suite, chosen: Mapping[Key, Chosen], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes with what tuning chose in their records, in the order of `Suite.requests`."""
    keys = [
        (place, row.tuned_as) for _ in suite.seeds for place in suite.places() for row in suite.rows(place)
    ]
    return [
        _marked(outcome, chosen[key].part) if key in chosen else outcome
        for key, outcome in zip(keys, outcomes, strict=True)
    ]


def _marked(outcome: Outcome, part: TuningPart) -> Outcome:
    """Return an outcome whose record says how it was tuned, on disk too."""
    record = outcome.record
    if record is None or record.tuning == part:
        return outcome
    record = replace(record, tuning=part)
    record.write(outcome.request.out)
    return replace(outcome, record=record)
