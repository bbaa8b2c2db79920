"""Confidence intervals and p-values of a mean over few seeds and many examples.

Seeds and examples could both have been others. The examples are many, so a bootstrap shows what they leave
open. The seeds are few: three of them agree by chance a quarter of the time, and then resampling them shows
no doubt at all. Their spread is judged by Student's t instead, and the two doubts are added in squares (Howe,
1974, "Approximate confidence limits on the mean of X + Y where X and Y are two tabled independent random
variables"). Where seeds matter little that is more careful than it had to be, and nowhere less.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

# A standard deviation of this many numbers is sure to two parts in a hundred.
RESAMPLES = 1000

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
    """

    value: float
    seeds: int
    examples: int
    spread: float
    shared: float
    least: float

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
        of_examples = _student(chance, self.examples - 1)
        of_seeds = _student(chance, self.seeds - 1)
        return max(math.hypot(of_seeds * self.spread, of_examples * self.shared), of_examples * self.least)


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


def _resample(statistic: Statistic, seeds: int, examples: int, seed: int) -> NDArray[np.float64]:
    """Return the statistic of each seed on resampled examples, alike for all seeds, `[seeds, RESAMPLES]`."""
    generator = np.random.default_rng(seed)
    batch = max(1, _BATCH_NUMBERS // (seeds * examples))
    batches: list[NDArray[np.float64]] = []
    for start in range(0, RESAMPLES, batch):
        indices = generator.integers(examples, size=(min(batch, RESAMPLES - start), examples))
        batches.append(statistic(lambda values, indices=indices: values.take(indices, axis=-1)))
    return np.concatenate(batches, axis=1)


def _student(chance: float, freedom: int) -> float:
    """Return the two-sided quantile of Student's t; 0 where there is nothing to be free."""
    return -float(cast("Any", scipy.special).stdtrit(freedom, chance / 2)) if freedom > 0 else 0.0
