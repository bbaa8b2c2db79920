"""Confidence intervals and verdicts from per-example predictions.

One run says how good a method was on these examples with this seed. Both could have been others: see
`rankfold.bench.statistics.confidence`. Two methods are compared on the same examples and seeds, pair by pair.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import statsmodels.stats.proportion
from numpy.typing import NDArray

from rankfold.bench.statistics.confidence import MeanEstimate, Pick, Statistic, estimate_mean
from rankfold.errors import DataError
from rankfold.runs.record import Prediction, RunRecord
from rankfold.tasks.list_metrics import metric_for
from rankfold.tasks.metrics import Metric, find_metric, is_smaller_better

LEVEL = 0.95
_FEWEST_ROWS = 2

Verdict = Literal[
    "reference", "better", "worse", "equivalent", "not inferior", "not separated", "not comparable"
]


@dataclass(frozen=True, slots=True)
class Scores:
    """Predictions of one method: the same examples under one or several seeds.

    Attributes:
        labels: The truth, one value per example; a checksum of it where it is a list.
        predictions: One row per seed, one column per example; for lists the counts of `metric`.
        seeds: The seeds in the order of the rows.
        metric: The metric that lists were counted for; None for values that every metric takes.
        offsets: Added to the metric of each seed: what rounding changed, where a run is stored rounded. Empty
            if nothing was.
    """

    labels: NDArray[Any]
    predictions: NDArray[Any]
    seeds: tuple[int, ...]
    metric: Metric | None = None
    offsets: tuple[float, ...] = ()

    def find_metric(self, name: str) -> Metric:
        """Return the metric of a name for these predictions.

        Raises:
            SpecError: If it is unknown.
        """
        return self.metric or find_metric(name)

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
        offsets = tuple(self.offsets[row] for row in rows) if self.offsets else ()
        return replace(self, predictions=self.predictions[rows], seeds=tuple(seeds), offsets=offsets)

    def measure(self, metric: str, pick: Pick) -> NDArray[np.float64]:
        """Return a metric of each seed on picked examples, `[seeds, resamples]`.

        Raises:
            SpecError: If the metric is unknown.
        """
        values = self.find_metric(metric).function(pick(self.labels), pick(self.predictions))
        return values + np.asarray(self.offsets)[:, None] if self.offsets else values


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether it excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one method is from the reference on the same examples and seeds.

    Attributes:
        estimate: The paired difference with its standard errors; positive when the metric is larger than the
            reference's.
        bound: The value it is tested against.
        is_error: Whether the metric is an error, so that a negative difference is the better.
        interval: The difference with its confidence interval.
        p_value: Two-sided, not corrected; of a difference from the bound.
    """

    estimate: MeanEstimate
    bound: float = 0.0
    is_error: bool = False
    interval: Interval = field(init=False)
    p_value: float = field(init=False)

    def __post_init__(self) -> None:
        """Compute the interval and the p-value."""
        object.__setattr__(self, "interval", _interval(self.estimate))
        object.__setattr__(self, "p_value", self.estimate.p_value(self.bound))

    @property
    def gain(self) -> MeanEstimate:
        """The estimate, turned so that more is better."""
        return replace(self.estimate, value=-self.estimate.value) if self.is_error else self.estimate


def metric_interval(scores: Scores, metric: str) -> Interval:
    """Return a metric, averaged over seeds, with its confidence interval.

    Accuracy of a single seed has Wilson's interval, and that of several is no surer than as many examples as
    would leave it as open. No interval leaves the range of the metric.

    Args:
        scores: The predictions.
        metric: A key of `rankfold.tasks.metrics.METRICS`; larger is better.

    Raises:
        SpecError: If the metric is unknown.
    """
    figure = scores.find_metric(metric)
    estimate = _mean_estimate(lambda pick: scores.measure(metric, pick), scores)
    interval = _interval(estimate)
    low, high = max(interval.low, figure.least), min(interval.high, figure.most)
    if metric != "accuracy":
        return Interval(estimate.value, low, high)
    wilson = _wilson(estimate)
    if estimate.seeds == 1:
        return wilson
    return Interval(estimate.value, min(low, wilson.low), max(high, wilson.high))


def _wilson(estimate: MeanEstimate) -> Interval:
    """Return Wilson's interval of an accuracy, which does not shrink to nothing where all is right.

    Several seeds on the same examples are as sure as a number of examples between that of one seed and that
    of all: the number whose accuracy would vary as much with other examples.
    """
    count = float(estimate.examples)
    if estimate.least:
        alike = estimate.value * (1 - estimate.value) / estimate.least**2
        count = min(max(count, alike), count * estimate.seeds)
    interval = cast("Any", statsmodels.stats.proportion).proportion_confint
    low, high = interval(estimate.value * count, count, alpha=1 - LEVEL, method="wilson")
    return Interval(estimate.value, float(low), float(high))


def mean_metric(scores: Scores, metric: str) -> float:
    """Return a metric, averaged over seeds.

    Raises:
        SpecError: If the metric is unknown.
    """
    return float(np.mean(scores.measure(metric, lambda values: values[..., None, :])))


def paired_difference(ours: Scores, reference: Scores, metric: str) -> Difference:
    """Return how much larger our metric is than the reference's, over the examples and seeds both have.

    Args:
        ours: Predictions of the method in question.
        reference: Predictions of the method it is held against.
        metric: A key of `rankfold.tasks.metrics.METRICS`; larger is better.

    Raises:
        DataError: If the examples differ, or no seed is shared.
        SpecError: If the metric is unknown.
    """
    return paired_contrast([ours, reference], (1.0, -1.0), metric)


def paired_contrast(
    scores: Sequence[Scores], weights: Sequence[float], metric: str, *, bound: float = 0.0
) -> Difference:
    """Return a weighted sum of the metrics of several methods, over the examples and seeds all of them have.

    Args:
        scores: Predictions of each method.
        weights: How much each counts; (1, -1) is the difference of two.
        metric: A key of `rankfold.tasks.metrics.METRICS`; larger is better.
        bound: What the sum is held against by the p-value.

    Raises:
        DataError: If the examples differ, or no seed is shared.
        SpecError: If the metric is unknown.
    """
    figure = scores[0].find_metric(metric)
    if not all(np.array_equal(method.labels, scores[0].labels) for method in scores):
        raise DataError("the runs were measured on different examples; evaluate all on the same data.")
    shared_seeds = tuple(
        seed_value for seed_value in scores[0].seeds if all(seed_value in method.seeds for method in scores)
    )
    if not shared_seeds:
        seed_list = " and ".join(str(method.seeds) for method in scores)
        raise DataError(f"the runs share no seed ({seed_list}); train all with the same seeds.")
    paired_scores = [method.of_seeds(shared_seeds) for method in scores]

    def gain(pick: Pick) -> NDArray[np.float64]:
        metrics = [method.measure(metric, pick) for method in paired_scores]
        return np.tensordot(np.asarray(weights), np.stack(metrics), axes=1)

    estimate = _mean_estimate(gain, paired_scores[0])
    return Difference(estimate, bound, figure.is_error)


def holm_rejections(p_values: Sequence[float]) -> list[bool]:
    """Return which hypotheses are rejected, corrected together by Holm's method (Holm, 1979).

    The i-th smallest of m p-values, counted from 0, has to be at most α / (m − i), and so has each before it.

    Args:
        p_values: Of every comparison made.
    """
    # statsmodels collects all garbage at each call, which takes most of the time of a report.
    order = np.argsort(p_values, kind="stable")
    bounds = (1 - LEVEL) / np.arange(len(p_values), 0, -1)
    is_rejected = np.zeros(len(p_values), dtype=bool)
    is_rejected[order] = np.logical_and.accumulate(np.asarray(p_values)[order] <= bounds)
    return is_rejected.tolist()


def verdicts(differences: Sequence[Difference], *, margin: float | None = None) -> list[Verdict]:
    """Return the verdict on each comparison, each question corrected over all comparisons by Holm's method.

    A difference from 0 makes "better" or "worse". Without one, and with a margin, two one-sided tests may
    show "equivalent", and one alone "not inferior".

    Args:
        differences: Every comparison made with one reference.
        margin: The largest difference that does not matter, in units of the metric; stated before the runs.
    """
    separated = holm_rejections([difference.p_value for difference in differences])
    gains = [difference.gain for difference in differences]
    equivalent = holm_rejections([1.0 if margin is None else gain.p_value_within(margin) for gain in gains])
    not_inferior = holm_rejections(
        [1.0 if margin is None else min(1.0, 2 * gain.p_value_above(-margin)) for gain in gains]
    )
    return [
        ("better" if gain.value > 0 else "worse")
        if is_separated
        else "equivalent"
        if is_equivalent
        else "not inferior"
        if is_not_inferior
        else "not separated"
        for gain, is_separated, is_equivalent, is_not_inferior in zip(
            gains, separated, equivalent, not_inferior, strict=True
        )
    ]


def _mean_estimate(statistic: Statistic, scores: Scores) -> MeanEstimate:
    return estimate_mean(statistic, seeds=len(scores.seeds), examples=len(scores.labels), seed=0)


def _interval(estimate: MeanEstimate) -> Interval:
    half = estimate.half_width(LEVEL)
    return Interval(estimate.value, estimate.value - half, estimate.value + half)


def goodness(record: RunRecord) -> float:
    """Return the metric of a run so that more is better; -inf for a run that failed."""
    if record.status == "failed":
        return -math.inf
    value = record.metrics[record.task.metric]
    return -value if is_smaller_better(record.task.metric) else value


def shared_examples(records: Sequence[RunRecord]) -> list[int | str]:
    """Return the ids of the examples that every run was measured on, in the order of the first.

    Examples whose label is a list are left out: only the kind of task that they are of can score them.
    """
    if not records:
        return []
    other_ids = [{item.id for item in record.predictions} for record in records[1:]]
    metric = records[0].task.metric
    first_ids = dict.fromkeys(
        item.id for item in records[0].predictions if not _is_foreign_list(item.label, metric)
    )
    return [example for example in first_ids if all(example in ids for ids in other_ids)]


def _is_foreign_list(label: object, metric: str) -> bool:
    """Return whether a label is a list that no metric of ours is for."""
    return isinstance(label, list) and metric_for(metric, cast("list[object]", label)) is None


def baselines_of(records: Sequence[RunRecord]) -> Mapping[str, float]:
    """Return the baselines of the run with the fewest examples, by name.

    All runs share the examples of that one, if runs with more examples begin with the same.
    """
    return min(records, key=lambda record: len(record.predictions)).baselines if records else {}


def metric_intervals(
    predictions: Sequence[Prediction], metrics: Mapping[str, float], *, seed: int = 0
) -> dict[str, Interval]:
    """Return the intervals over held-out rows of the metrics of one run that follow from its predictions.

    Args:
        predictions: Of the run.
        metrics: By name. A metric of another package may have the name of one of ours; its value differs.
        seed: The run's.
    """
    intervals: dict[str, Interval] = {}
    for name, value in metrics.items():
        if len(predictions) < _FEWEST_ROWS or metric_for(name, predictions[0].label) is None:
            continue
        interval = metric_interval(_scores_of_rows([predictions], [seed], name), name)
        if math.isclose(interval.value, value, rel_tol=1e-3, abs_tol=1e-6):
            intervals[name] = interval
    return intervals


def knows_metric(records: Sequence[RunRecord], metric: str) -> bool:
    """Return whether a metric of runs can be computed from their predictions."""
    labels: list[object] = [item.label for record in records for item in record.predictions[:1]]
    return all(metric_for(metric, label) is not None for label in labels or [None])


def scores_of(records: Sequence[RunRecord], examples: Sequence[int | str], metric: str) -> Scores:
    """Return the predictions of runs of one method, one row per seed.

    Args:
        records: At least one run.
        examples: The ids of the examples.
        metric: The metric that they are for; labels that are lists are counted for it.
    """
    predictions_by_id = [{item.id: item for item in record.predictions} for record in records]
    rows = [[run[name] for name in examples] for run in predictions_by_id]
    scores = _scores_of_rows(rows, [record.training.seed for record in records], metric)
    offsets = tuple(_rounding_change(record, metric) for record in records)
    return replace(scores, offsets=offsets) if any(offsets) else scores


def stored_score(record: RunRecord) -> float:
    """Return the metric of a run that is done, with the numbers that are stored where they are rounded."""
    metric = record.task.metric
    return record.metrics[metric] + _rounding_change(record, metric)


def _rounding_change(record: RunRecord, metric: str) -> float:
    """Return by how much the metric changed where the run is stored rounded; 0 for other runs."""
    stored = record.stored.get(record.request.stored_type or "")
    return stored.score - record.metrics[metric] if stored and metric == record.task.metric else 0.0


def _scores_of_rows(rows: Sequence[Sequence[Prediction]], seeds: Sequence[int], metric: str) -> Scores:
    """Return predictions of the same examples under one or several seeds."""
    labels: list[Any] = [item.label for item in rows[0]]
    predictions: list[list[Any]] = [[item.prediction for item in row] for row in rows]
    figure = metric_for(metric, labels[0]) if labels else None
    if figure is None or figure.counts is None:
        return Scores(np.array(labels), np.array(predictions), tuple(seeds))
    # All seeds are counted together, so that they have the same classes.
    counts = figure.counts(labels * len(seeds), [value for row in predictions for value in row])
    checksums = np.array([zlib.crc32(json.dumps(label).encode()) for label in labels])
    return Scores(checksums, counts.reshape(len(seeds), len(labels)), tuple(seeds), figure)


def mean_score(records: Sequence[RunRecord], metric: str, examples: Sequence[int | str]) -> Interval | None:
    """Return the mean over the runs of one method; None if there is no run."""
    if not records:
        return None
    if knows_metric(records, metric) and examples:
        return metric_interval(scores_of(records, examples, metric), metric)
    value = float(np.mean([record.metrics[metric] + _rounding_change(record, metric) for record in records]))
    return Interval(value, value, value)


def rank_records(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return runs of one rung, the best first, failed ones last.

    A run that is stored rounded counts as it is stored. Equal scores are ordered by the loss on the same
    rows, then by the number of trained parameters; then they stay in order.
    """
    return sorted(records, key=_rank)


def _rank(record: RunRecord) -> tuple[float, float, int]:
    if record.status == "failed":
        return math.inf, math.inf, 0
    score = stored_score(record)
    error = score if is_smaller_better(record.task.metric) else -score
    return error, held_out_loss(record), record.parameters.trainable


def not_above_baseline(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs that have not been seen to be better than guessing, such as the most frequent class."""
    return [record for record in records if record.status == "done" and _is_like_guessing(record)]


def _is_like_guessing(record: RunRecord) -> bool:
    metric = record.task.metric
    score = mean_score([record], metric, shared_examples([record]))
    if score is None or not record.baselines:
        return False
    if is_smaller_better(metric):
        return score.high >= min(record.baselines.values())
    return score.low <= max(record.baselines.values())


def held_out_loss(record: RunRecord) -> float:
    """Return the last loss on held-out rows; infinite where none was measured."""
    return float(record.curve.validation[-1]["loss"]) if record.curve.validation else math.inf
