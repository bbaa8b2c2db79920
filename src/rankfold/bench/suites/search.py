"""Equal tuning: every method gets as many trials as any other, measured on rows cut from the training split.

A trial is a run like any other, with a record, so a search that was stopped goes on: what is asked next
follows from the records of what was asked before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, Protocol, cast, final

from rankfold.errors import SpecError

Values = dict[str, Any]
Space = Mapping[str, Any]
"""What is searched, by name: a list of values, or `{low, high, log}` for a range."""


@final
@dataclass(frozen=True, slots=True)
class Tuning:
    """How each method's learning rate and options are chosen.

    Args:
        space: What is searched, for methods that do not say otherwise.
        sampler: `grid` tries all combinations of lists; `tpe` asks optuna's tree-structured Parzen estimator.
        trials: How many; of a grid as many as it has.
        seed: Of the trials' runs and of the sampler.
        base: Settings of the trials that differ from those of the suite, such as fewer epochs.
        tasks: Settings of the trials on single tasks that differ from these.

    Raises:
        SpecError: If the seed is none.
    """

    space: Space
    sampler: Literal["grid", "tpe"] = "grid"
    trials: int | None = None
    seed: int = 0
    base: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

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
        if self.sampler == "tpe" and isinstance(values, Mapping):
            _limits(name, cast("Space", values))
        elif not isinstance(values, list | tuple) or not values:
            alternative = 'sampler = "tpe"' if self.sampler == "grid" else "a range with low and high"
            raise SpecError(
                f"the {self.sampler} of '{name}' is {values}; give a list of values, or {alternative}."
            )

    def search(self, space: Space) -> "Search":
        """Return a new search of a space."""
        return Grid(space) if self.sampler == "grid" else Tpe(space, self.trials_of(space), self.seed)


class Search(Protocol):
    """Suggests trials and learns from their scores."""

    def suggest(self) -> list[Values]:
        """Return the values to try next; none when the search is over."""
        ...

    def report(self, scores: Sequence[float]) -> None:
        """Report the metric of each of the values last suggested; -inf for a trial that failed."""
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


def _suggest_value(trial: Any, name: str, values: Any) -> Any:
    if isinstance(values, Mapping):
        low, high, log = _limits(name, cast("Space", values))
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=log)
        return trial.suggest_float(name, low, high, log=log)
    return trial.suggest_categorical(name, list(values))


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
