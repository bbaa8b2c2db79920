"""Confidence intervals and p-values of a mean over few seeds and many examples.

Seeds and examples could both have been others. The examples are many, so a bootstrap shows what they leave
open. The seeds are few: three of them agree by chance a quarter of the time, and then resampling them shows
no doubt at all. So the bootstrap has two levels: examples are resampled, alike in all seeds, and the level of
seeds is Student's t of their spread, to which a bootstrap of many seeds converges. The two are added in
squares (Howe, 1974, "Approximate confidence limits on the mean of X + Y where X and Y are two tabled
independent random variables"). Where seeds matter little that is wider than it had to be, and nowhere less.

Tasks are a third level, a fixed one: the mean over tasks speaks of these tasks, not of others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

# A standard deviation of this many numbers is sure to two parts in a hundred.
RESAMPLES = 1000

POWER = 0.8
"""The usual chance with which a design should find what there is."""

# Bounds the memory of the bootstrap, not its result.
_BATCH_NUMBERS = 500_000

# Nothing is read from how much smaller a p-value is.
_LEAST_P_VALUE = 1e-12

Pick = Callable[[NDArray[Any]], NDArray[Any]]
"""Takes some of the examples, the last axis: `[..., n]` becomes `[..., resamples, n]`."""

Statistic = Callable[[Pick], NDArray[np.float64]]
"""Given what picks examples from labels `[n]` and predictions `[seeds, n]`, returns `[seeds, resamples]`."""


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean over seeds with its standard errors.

    Attributes:
        value: The mean.
        seeds: How many seeds there are.
        examples: How many examples there are.
        spread: Standard error of the mean that the spread over the seeds shows; 0 for a single seed.
        shared: Standard error that other examples would make in all seeds alike.
        least: Standard error that other examples would make, by `shared` and in each seed apart.
        freedom: Degrees of freedom of `spread`; those of the seeds if None.
    """

    value: float
    seeds: int
    examples: int
    spread: float
    shared: float
    least: float
    freedom: float | None = None

    def half_width(self, level: float) -> float:
        """Return how far the truth may be from the value, at a confidence level such as 0.95."""
        return self._reach(1 - level)

    def p_value(self, bound: float = 0.0) -> float:
        """Return how probable a value as far from `bound` is, on either side, if the truth is `bound`."""
        distance = abs(self.value - bound)
        least = self._least_p_value(bound)
        if self._reach(_LEAST_P_VALUE) <= distance:
            return max(_LEAST_P_VALUE, least) if distance else 1.0

        def beyond(power: float) -> float:
            return self._reach(math.exp(power)) - distance

        power = cast("Any", scipy.optimize).brentq(beyond, math.log(_LEAST_P_VALUE), 0.0)
        return max(math.exp(power), least)

    def p_value_above(self, bound: float) -> float:
        """Return how probable a value as far above `bound` is if the truth is not above it (one-sided)."""
        half = self.p_value(bound) / 2
        return half if self.value > bound else 1 - half

    def p_value_within(self, margin: float) -> float:
        """Return the p-value of two one-sided tests (TOST): that the truth is less than `margin` from 0.

        Schuirmann, 1987, "A comparison of the two one-sided tests procedure and the power approach".
        """
        opposite = replace(self, value=-self.value)
        return max(self.p_value_above(-margin), opposite.p_value_above(-margin))

    def detectable(self, level: float, power: float = POWER) -> float:
        """Return the smallest true difference that such a design separates from 0 with a power.

        It is the noncentrality of Student's t at which the test succeeds so often, in standard errors.

        Args:
            level: One minus the two-sided chance of a false verdict.
            power: The chance to find a true difference of this size.
        """
        return self._resolution(1 - level, power)

    def detectable_margin(self, level: float, power: float = POWER) -> float:
        """Return the smallest margin within which such a design shows equal methods to be, with a power.

        Args:
            level: One minus the chance of a false "equivalent".
            power: The chance that both tests show two equal methods to be equivalent.
        """
        return self._resolution(2 * (1 - level), (1 + power) / 2)

    def _resolution(self, chance: float, power: float) -> float:
        """Return the distance that a two-sided test finds with a power in the one direction that it has.

        Where nothing varied it is the share of examples that may have differed unseen.
        """
        seeds, examples = (_noncentrality(chance, power, freedom) for freedom in self._freedoms())
        distance = max(math.hypot(seeds * self.spread, examples * self.shared), examples * self.least)
        return distance or 1 - chance ** (1 / self.examples)

    def _freedoms(self) -> tuple[float, float]:
        """Return the degrees of freedom of seeds and of examples."""
        return self.seeds - 1 if self.freedom is None else self.freedom, self.examples - 1

    def _least_p_value(self, bound: float) -> float:
        """Return how probable it is that all examples say the same, which resampling them cannot know.

        They are no surer than as many tosses of a coin. If none shows a difference, a share of them as large
        as the bound may have shown none by chance.
        """
        if not (self.value or self.spread or self.least):
            return max(0.0, 1 - abs(bound)) ** self.examples
        return 2.0 ** (1 - self.examples)

    def _reach(self, chance: float) -> float:
        """Return the distance that a value has from the truth with this chance, or less of it."""
        seeds, examples = (_student(chance, freedom) for freedom in self._freedoms())
        return max(math.hypot(seeds * self.spread, examples * self.shared), examples * self.least)


def estimate_mean(statistic: Statistic, *, seeds: int, examples: int, seed: int) -> MeanEstimate:
    """Return the mean of a statistic over the seeds with its standard errors.

    Args:
        statistic: What is measured of each seed on examples that are picked.
        seeds: How many seeds there are.
        examples: How many examples there are.
        seed: Makes the resamples repeatable.
    """
    values = statistic(lambda values: values[..., None, :])[:, 0]
    value = float(np.mean(values))
    if examples == 1:  # one example cannot be resampled
        return MeanEstimate(value, seeds, examples, 0.0, 0.0, 0.0)
    together = np.atleast_2d(np.cov(_resample(statistic, seeds, examples, seed)))
    least = float(np.mean(together))
    if seeds == 1:
        return MeanEstimate(value, seeds, examples, 0.0, math.sqrt(least), math.sqrt(least))
    shared = float(together.sum() - together.trace()) / (seeds * (seeds - 1))
    spread = float(np.std(values, ddof=1)) / math.sqrt(seeds)
    return MeanEstimate(
        value, seeds, examples, spread, math.sqrt(max(0.0, shared)), math.sqrt(max(0.0, least))
    )


def mean_estimate(estimates: Sequence[MeanEstimate]) -> MeanEstimate:
    """Return the mean of independent estimates, such as those of a difference on several tasks.

    Standard errors are added in squares; the degrees of freedom of the spread over seeds are those of
    Satterthwaite, 1946.

    Args:
        estimates: At least one.
    """
    count = len(estimates)
    squares = [(estimate.spread / count) ** 2 for estimate in estimates]
    seeds = min(estimate.seeds for estimate in estimates)
    weighted = sum(
        square**2 / max(1, estimate.seeds - 1) for square, estimate in zip(squares, estimates, strict=True)
    )
    return MeanEstimate(
        sum(estimate.value for estimate in estimates) / count,
        seeds,
        min(estimate.examples for estimate in estimates),
        math.sqrt(sum(squares)),
        math.hypot(*(estimate.shared for estimate in estimates)) / count,
        math.hypot(*(estimate.least for estimate in estimates)) / count,
        sum(squares) ** 2 / weighted if weighted else None,
    )


def _resample(statistic: Statistic, seeds: int, examples: int, seed: int) -> NDArray[np.float64]:
    """Return the statistic of each seed on resampled examples, alike for all seeds, `[seeds, RESAMPLES]`."""
    generator = np.random.default_rng(seed)
    batch = max(1, _BATCH_NUMBERS // (seeds * examples))
    batches: list[NDArray[np.float64]] = []
    for start in range(0, RESAMPLES, batch):
        indices = generator.integers(examples, size=(min(batch, RESAMPLES - start), examples))
        batches.append(statistic(lambda values, indices=indices: values.take(indices, axis=-1)))
    return np.concatenate(batches, axis=1)


def _student(chance: float, freedom: float) -> float:
    """Return the two-sided quantile of Student's t; 0 where there is nothing to be free."""
    return -float(cast("Any", scipy.special).stdtrit(freedom, chance / 2)) if freedom > 0 else 0.0


def _noncentrality(chance: float, power: float, freedom: float) -> float:
    """Return how many standard errors from 0 a two-sided t-test of a level succeeds with a power."""
    if freedom <= 0:
        return 0.0
    return float(cast("Any", scipy.special).nctdtrinc(freedom, 1 - power, _student(chance, freedom)))
