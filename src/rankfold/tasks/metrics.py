"""What is measured on predictions, as plain floats; larger is better, unless it says otherwise."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, cast

import scipy.stats
import sklearn.metrics

from rankfold.errors import unknown_name
from rankfold.models.kind import Kind

Values = Sequence[int] | Sequence[float]


def _accuracy(labels: Values, predictions: Values) -> float:
    return mean(float(label == prediction) for label, prediction in zip(labels, predictions, strict=True))


def _f1(labels: Values, predictions: Values) -> float:
    return float(cast(Any, sklearn.metrics).f1_score(labels, predictions, zero_division=0.0))


def _macro_f1(labels: Values, predictions: Values) -> float:
    return float(cast(Any, sklearn.metrics).f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews(labels: Values, predictions: Values) -> float:
    return float(cast(Any, sklearn.metrics).matthews_corrcoef(labels, predictions))


def _pearson(labels: Values, predictions: Values) -> float:
    return _correlation(cast(Any, scipy.stats).pearsonr, labels, predictions)


def _spearman(labels: Values, predictions: Values) -> float:
    return _correlation(cast(Any, scipy.stats).spearmanr, labels, predictions)


def _correlation(measure: Callable[[Values, Values], Any], labels: Values, predictions: Values) -> float:
    # A constant has no correlation with anything; it has learned nothing, which is zero.
    if len(set(labels)) < 2 or len(set(predictions)) < 2:  # noqa: PLR2004
        return 0.0
    return float(measure(labels, predictions)[0])


METRICS: Mapping[str, Callable[[Values, Values], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}


def measure(names: Sequence[str], labels: Values, predictions: Values) -> dict[str, float]:
    """Return the metrics of predictions.

    Args:
        names: Keys of `METRICS`. `f1` is that of class 1; correlations of a constant are zero.
        labels: What was right.
        predictions: What was predicted, in the same order.

    Raises:
        SpecError: If a metric is unknown.
    """
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    return {name: METRICS[name](labels, predictions) for name in names}


def default_metrics(kind: Kind, classes: int) -> tuple[str, ...]:
    """Return the metrics of data without a name of its own, the primary one first."""
    if kind is Kind.REGRESSION:
        return ("pearson", "spearman")
    if kind is Kind.CLASSIFICATION and classes > 2:  # noqa: PLR2004
        return ("accuracy", "macro_f1")
    return ("accuracy",)


def trivial_predictions(kind: Kind, train: Values, count: int) -> list[int] | list[float]:
    """Return the predictions of a model that never looks: the commonest training label, or the mean."""
    if kind is Kind.REGRESSION:
        return [mean(train)] * count
    return [cast(int, min(Counter(train).items(), key=lambda item: (-item[1], item[0]))[0])] * count


ANSWER_LOSS = "answer_loss"
"""The mean cross-entropy of an answer's token; better when smaller."""

UNPARSED = "unparsed"
"""The share of generated answers that name no choice; they count as wrong."""
