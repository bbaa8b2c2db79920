"""Intervals and verdicts from per-example predictions, so that a comparison carries its doubt.

One run says how good a method was on these examples with this seed. Both could have been others, so both are
resampled: examples always, seeds when there are at least two (Owen, 2007, "The pigeonhole bootstrap").
Two methods are compared on the same examples and the same seeds, pair by pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import scipy.stats
import statsmodels.stats.multitest
from numpy.typing import NDArray

from rankfold.bench.measures import measure_named
from rankfold.errors import DataError

RESAMPLES = 4000
LEVEL = 0.95

# Bounds the memory of the bootstrap, not its result.
_BATCH_NUMBERS = 2_000_000

Verdict = Literal["reference", "better", "worse", "not separated", "not comparable"]

# Resamples labels or predictions.
Pick = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Scores:
    """What one method predicted: the same examples under one or several seeds.

    Attributes:
        labels: The truth, one value per example.
        predictions: One row per seed, one column per example.
        seeds: The seeds in the order of the rows.
    """

    labels: NDArray[Any]
    predictions: NDArray[Any]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that there is something to measure.

        Raises:
            DataError: If there is no example, or the shapes do not fit.
        """
        if not len(self.labels):
            raise DataError("there are no predictions to measure; evaluate on at least one example.")
        if self.predictions.shape != (len(self.seeds), len(self.labels)):
            raise DataError(
                f"predictions have shape {self.predictions.shape} for {len(self.seeds)} seeds and "
                f"{len(self.labels)} examples; give one row per seed and one column per example."
            )

    def of_seeds(self, seeds: Sequence[int]) -> "Scores":
        """Return the rows of some seeds, in this order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Scores(self.labels, self.predictions[rows], tuple(seeds))


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one method is from the reference on the same examples and seeds.

    Attributes:
        interval: The paired difference; positive when the metric is larger than the reference's.
        p_value: Two-sided, from the bootstrap distribution, not corrected; of a difference from the bound,
            which is 0 unless something else was asked for.
    """

    interval: Interval
    p_value: float


def metric_interval(scores: Scores, metric: str, *, seed: int = 0, level: float = LEVEL) -> Interval:
    """Return a metric, averaged over seeds, with its confidence interval.

    Accuracy of a single seed has Wilson's interval; everything else the percentile bootstrap.

    Args:
        scores: The predictions.
        metric: A key of `rankfold.bench.measures.MEASURES`; larger is better.
        seed: Makes the bootstrap repeatable.
        level: Coverage, such as 0.95.

    Raises:
        SpecError: If the metric is unknown.
    """
    measure = measure_named(metric)
    if metric == "accuracy" and len(scores.seeds) == 1:
        hits = int(np.sum(scores.labels == scores.predictions[0]))
        wilson = (
            cast("Any", scipy.stats).binomtest(hits, len(scores.labels)).proportion_ci(level, method="wilson")
        )
        return Interval(hits / len(scores.labels), float(wilson.low), float(wilson.high))
    return _bootstrap(
        lambda pick: measure(pick(scores.labels), pick(scores.predictions)), scores, seed, level
    )[0]


def paired_difference(
    ours: Scores, reference: Scores, metric: str, *, seed: int = 0, level: float = LEVEL
) -> Difference:
    """Return how much larger our metric is than the reference's, over the examples and seeds both have.

    Args:
        ours: Predictions of the method in question.
        reference: Predictions of the method it is held against.
        metric: A key of `rankfold.bench.measures.MEASURES`; larger is better.
        seed: Makes the bootstrap repeatable.
        level: Coverage of the interval.

    Raises:
        DataError: If the examples differ, or no seed is shared.
        SpecError: If the metric is unknown.
    """
    return paired_contrast([ours, reference], (1.0, -1.0), metric, seed=seed, level=level)


def paired_contrast(
    scores: Sequence[Scores],
    weights: Sequence[float],
    metric: str,
    *,
    bound: float = 0.0,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """Return a weighted sum of the metrics of several methods, over the examples and seeds all of them have.

    Args:
        scores: Predictions of each method.
        weights: How much each counts; (1, -1) is the difference of two.
        metric: A key of `rankfold.bench.measures.MEASURES`; larger is better.
        bound: What the sum is held against by the p-value.
        seed: Makes the bootstrap repeatable.
        level: Coverage of the interval.

    Raises:
        DataError: If the examples differ, or no seed is shared.
        SpecError: If the metric is unknown.
    """
    measure = measure_named(metric)
    if not all(np.array_equal(each.labels, scores[0].labels) for each in scores):
        raise DataError("the runs were measured on different examples; evaluate all on the same data.")
    shared = tuple(one for one in scores[0].seeds if all(one in each.seeds for each in scores))
    if not shared:
        listed = " and ".join(str(each.seeds) for each in scores)
        raise DataError(f"the runs share no seed ({listed}); train all with the same seeds.")
    paired = [each.of_seeds(shared) for each in scores]

    def gain(pick: Pick) -> NDArray[np.float64]:
        truth = pick(paired[0].labels)
        metrics = [measure(truth, pick(each.predictions)) for each in paired]
        return np.tensordot(np.asarray(weights), np.stack(metrics), axes=1)

    interval, drawn = _bootstrap(gain, paired[0], seed, level)
    # The +1 keeps a p-value from a finite number of resamples above zero (Davison and Hinkley, 1997).
    tail = min(int(np.sum(drawn <= bound)), int(np.sum(drawn >= bound)))
    return Difference(interval, min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


def rejected_together(differences: Sequence[Difference], *, level: float = LEVEL) -> list[bool]:
    """Return which differences are not their bound, corrected together by Holm's method.

    Args:
        differences: Every comparison made.
        level: One minus the chance of any false rejection.
    """
    if not differences:
        return []
    p_values = [difference.p_value for difference in differences]
    correct = cast("Any", statsmodels.stats.multitest).multipletests
    return [bool(sure) for sure in correct(p_values, alpha=1 - level, method="holm")[0]]


def verdicts(differences: Sequence[Difference], *, level: float = LEVEL) -> list[Verdict]:
    """Return "better", "worse" or "not separated" for each comparison, corrected together by Holm's method.

    Args:
        differences: Every comparison made with one reference.
        level: One minus the chance of any false verdict.
    """
    return [
        "not separated" if not sure else "better" if difference.interval.value > 0 else "worse"
        for difference, sure in zip(differences, rejected_together(differences, level=level), strict=True)
    ]


def _bootstrap(
    statistic: Callable[[Pick], NDArray[np.float64]], scores: Scores, seed: int, level: float
) -> tuple[Interval, NDArray[np.float64]]:
    """Return the mean over seeds with its percentile interval, and the whole bootstrap distribution.

    Args:
        statistic: Given a function that resamples labels `[examples]` or predictions `[seeds, examples]`,
            returns one value per seed, `[..., seeds]`.
        scores: Says how many examples and seeds there are.
        seed: Makes the draws repeatable.
        level: Coverage.
    """
    examples, seeds = np.arange(len(scores.labels)), np.arange(len(scores.seeds))

    def mean_over_seeds(drawn: NDArray[np.intp], rows: NDArray[np.intp] = seeds, axis: int = -1) -> Any:
        def pick(values: NDArray[Any]) -> NDArray[Any]:
            some = drawn[..., None, :]
            return values[some] if values.ndim == 1 else values[rows[..., :, None], some]

        return np.mean(statistic(pick), axis=axis)

    value = float(mean_over_seeds(examples))
    if len(examples) == 1:  # one example cannot be resampled; there is no doubt to be computed
        return Interval(value, value, value), np.array([value])
    result = cast("Any", scipy.stats).bootstrap(
        (examples, seeds) if len(seeds) > 1 else (examples,),
        mean_over_seeds,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // scores.predictions.size),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(value, float(low), float(high)), result.bootstrap_distribution
