"""Equal tuning: every method gets as many trials as any other, measured on rows cut from the training split.

A trial is a run like any other, with a record, so a search that was stopped goes on: the next suggestion
follows from the records of the earlier ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, Protocol, cast, final

from rankfold.errors import SpecError
from rankfold.runs.record import TuningInfo

Values = dict[str, Any]
Space = Mapping[str, Any]
"""Values to search by name: a list, `{low, high, log}` for a range, or `{center, factor}` for a ladder."""

Sampler = Literal["grid", "tpe", "ladder"]

MOST_RUNGS = 12
"""A ladder ends after this many trials, also if its best value is still the first or the last."""


@final
@dataclass(frozen=True, slots=True)
class Tuning:
    """How each method's learning rate and options are chosen.

    Args:
        space: The values to search, for methods without a space of their own.
        sampler: `ladder` tries one value on a log scale around a centre and climbs until the best one has a
            worse one on both sides; `grid` tries all combinations of lists; `tpe` asks optuna's
            tree-structured Parzen estimator.
        trials: Number of trials; a grid has as many as combinations, and a ladder takes this as an estimate.
        seed: Seed of the trials' runs and of the sampler; further `shared` tasks have the next ones.
        base: Settings of the trials that differ from those of the suite, such as fewer epochs.
        tasks: Settings of the trials on single tasks that differ from these.
        shared: Tasks whose mean score chooses one value for all tasks of the suite; each task has its own
            value if empty.

    Raises:
        SpecError: If the seed is out of range.
    """

    space: Space
    sampler: Sampler = "grid"
    trials: int | None = None
    seed: int = 0
    base: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the seed."""
        if not 0 <= self.seed < 2**32:
            raise SpecError(f"seed of the tuning is {self.seed}; give a whole number from 0 to {2**32 - 1}.")

    def trials_of(self, space: Space) -> int:
        """Return how many trials a space gets.

        Raises:
            SpecError: If it cannot be searched, or does not get as many trials as the suite says.
        """
        for name, values in space.items():
            self._check(name, values)
        if self.sampler == "ladder":
            if len(space) != 1:
                raise SpecError(f"a ladder has {len(space)} names; give one, such as learning_rate.")
            return min(max(self.trials or 5, 3), MOST_RUNGS)
        if self.sampler == "tpe":
            if not self.trials or self.trials < 1:
                raise SpecError(f"trials of the tuning is {self.trials}; give a number above 0 for 'tpe'.")
            return self.trials
        count = math.prod(len(values) for values in space.values())
        if self.trials not in (None, count):
            raise SpecError(
                f"trials of the tuning is {self.trials}, and a grid has {count} combinations; "
                'leave trials out, or give sampler = "tpe".'
            )
        return count

    def _check(self, name: str, values: Any) -> None:
        """Check that there is something to choose from for one name."""
        if self.sampler == "ladder":
            _rungs(name, values)
        elif self.sampler == "tpe" and isinstance(values, Mapping):
            _limits(name, cast("Space", values))
        elif not isinstance(values, list | tuple) or not values:
            alternative = 'sampler = "tpe"' if self.sampler == "grid" else "a range with low and high"
            raise SpecError(
                f"the {self.sampler} of '{name}' is {values}; give a list of values, or {alternative}."
            )

    def search(self, space: Space) -> "Search":
        """Return a new search of a space."""
        if self.sampler == "ladder":
            return Ladder(space)
        return Grid(space) if self.sampler == "grid" else Tpe(space, self.trials_of(space), self.seed)


class Search(Protocol):
    """Suggests trials and learns from their scores."""

    def suggest(self) -> list[Values]:
        """Return the values to try next; none when the search is over."""
        ...

    def report(self, scores: Sequence[float]) -> None:
        """Report the metric of each of the values last suggested; -inf for a trial that failed."""
        ...

    def refine(self) -> list[Values]:
        """Return one more value near the best, for a search that ended earlier than others; or none."""
        ...


@final
class Grid:
    """Every combination, all at once."""

    def __init__(self, space: Space) -> None:
        self._left = [dict(zip(space, values, strict=True)) for values in product(*space.values())]

    def suggest(self) -> list[Values]:
        """Return all combinations, once."""
        combinations, self._left = self._left, []
        return combinations

    def report(self, scores: Sequence[float]) -> None:
        """Learn nothing."""

    def refine(self) -> list[Values]:
        """Return nothing: a grid has the values it was given."""
        return []


@final
class Ladder:
    """Values `center * factor**rung`, extended until the best one has a worse one on both sides.

    A trial that failed or diverged counts as worse. Between equal scores the one nearest to the centre is the
    best. `refine` halves the distance to the neighbours of the best rung.
    """

    def __init__(self, space: Space) -> None:
        ((self._name, values),) = space.items()
        self._center, self._factor = _rungs(self._name, values)
        self._scores: dict[float, float] = {}
        self._suggested: list[float] = []

    def suggest(self) -> list[Values]:
        """Return the centre with both neighbours, then one rung at a time; none once the best is inside."""
        if not self._scores:
            return self._values([0.0, -1.0, 1.0])
        best, rungs = self._best(), sorted(self._scores)
        if len(rungs) >= MOST_RUNGS or best not in (rungs[0], rungs[-1]):
            return []
        return self._values([best - 1.0 if best == rungs[0] else best + 1.0])

    def refine(self) -> list[Values]:
        """Return the nearest value to the best that was not tried, halfway to a neighbour or nearer."""
        best = self._best()
        steps = (sign * 0.5**halving for halving in range(1, 4) for sign in (1, -1))
        rung = next((best + step for step in steps if best + step not in self._scores), None)
        return [] if rung is None else self._values([rung])

    def report(self, scores: Sequence[float]) -> None:
        """Remember the scores of the rungs."""
        self._scores |= zip(self._suggested, scores, strict=True)

    def _best(self) -> float:
        return max(self._scores, key=lambda rung: (self._scores[rung], -abs(rung)))

    def _values(self, rungs: list[float]) -> list[Values]:
        self._suggested = rungs
        return [{self._name: float(f"{self._center * self._factor**rung:.3g}")} for rung in rungs]


@final
class Tpe:
    """Optuna's sampler, one trial at a time: the same answers lead to the same questions."""

    def __init__(self, space: Space, trials: int, seed: int) -> None:
        import optuna  # one of the bench's packages, and slow to import

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        startup_trials = min(trials - 1, max(2, trials // 3))
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup_trials)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space, self._left = space, trials
        self._trial: Any = None

    def suggest(self) -> list[Values]:
        """Return one trial."""
        if not self._left:
            return []
        self._left -= 1
        self._trial = self._study.ask()
        return [{name: _suggest_value(self._trial, name, values) for name, values in self._space.items()}]

    def report(self, scores: Sequence[float]) -> None:
        """Report the score of the trial."""
        import optuna

        failed_state = optuna.trial.TrialState.FAIL
        if math.isfinite(scores[0]):
            self._study.tell(self._trial, scores[0])
        else:
            self._study.tell(self._trial, state=failed_state)

    def refine(self) -> list[Values]:
        """Return nothing: the sampler had all of its trials."""
        return []


def _suggest_value(trial: Any, name: str, values: Any) -> Any:
    if isinstance(values, Mapping):
        low, high, log = _limits(name, cast("Space", values))
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=log)
        return trial.suggest_float(name, low, high, log=log)
    return trial.suggest_categorical(name, list(values))


def _rungs(name: str, ladder: Any) -> tuple[float, float]:
    """Return the centre and the factor of a ladder."""
    entries = dict(cast("Space", ladder)) if isinstance(ladder, Mapping) else {"": ladder}
    center, factor = entries.pop("center", None), entries.pop("factor", 2.0)
    if entries or not _is_number(center) or not _is_number(factor) or center <= 0 or factor <= 1:
        raise SpecError(
            f"the ladder of '{name}' is {ladder}; give a center above 0 and a factor above 1, such as "
            "{ center = 1e-3, factor = 2 }."
        )
    return center, factor


def _limits(name: str, limits: Space) -> tuple[float, float, bool]:
    """Return where a range begins and ends, and whether it is searched by the logarithm."""
    if unknown := limits.keys() - {"low", "high", "log"}:
        raise SpecError(f"the range of '{name}' has '{min(unknown)}'; give low, high and log only.")
    try:
        low, high, log = limits["low"], limits["high"], limits.get("log", False)
    except KeyError as error:
        raise SpecError(f"the range of '{name}' has no {error}; give low and high.") from error
    if not _is_number(low) or not _is_number(high) or low > high:
        raise SpecError(
            f"the range of '{name}' is from '{low}' to '{high}'; give two numbers, the lower as low."
        )
    if not isinstance(log, bool):
        raise SpecError(f"log of the range of '{name}' is '{log}'; give true or false.")
    if log and low <= 0:
        raise SpecError(f"the range of '{name}' begins at {low}; give a low above 0, or leave log out.")
    return low, high, log


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def edge_names(choice: TuningInfo, curve: Sequence[Mapping[str, object]] | None = None) -> list[str]:
    """Return the names whose chosen number is the least or the greatest of three or more.

    Args:
        choice: The chosen values.
        curve: The values tried; those of the choice if None.
    """
    points = choice.curve if curve is None else curve
    return [name for name, value in choice.values.items() if _is_edge(name, value, points)]


def _is_edge(name: str, value: object, curve: Sequence[Mapping[str, object]]) -> bool:
    tried = [point[name] for point in curve if name in point]
    numbers = [number for number in tried if isinstance(number, int | float)]
    edges = {min(numbers), max(numbers)} if len(numbers) == len(tried) and numbers else set[float]()
    return value in edges and len(set(numbers)) > len(edges)
