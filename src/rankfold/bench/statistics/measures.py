"""Metrics over many resamples at once: as `rankfold.tasks.metrics`, along the last axis."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from rankfold.errors import unknown_name

Values = NDArray[Any]
Measure = Callable[[Values, Values], NDArray[np.float64]]


def measure_named(name: str) -> Measure:
    """Return the metric of this name: labels `[..., n]` and predictions `[..., n]` give values `[...]`.

    Raises:
        SpecError: If there is none.
    """
    if name not in MEASURES:
        raise unknown_name("metric", name, MEASURES)
    return MEASURES[name]


def least_of(name: str) -> float:
    """Return the smallest value a metric can have; the largest of each is 1."""
    return -1.0 if name in _CORRELATIONS else 0.0


def _accuracy(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return np.mean(labels == predictions, axis=-1)


def _f1(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return _f1_of_class(labels, predictions, 1)


def _f1_of_class(labels: Values, predictions: Values, which: object) -> NDArray[np.float64]:
    truth, guess = labels == which, predictions == which
    hits = np.sum(truth & guess, axis=-1)
    return _ratio(2 * hits, np.sum(truth, axis=-1) + np.sum(guess, axis=-1))


def _macro_f1(labels: Values, predictions: Values) -> NDArray[np.float64]:
    # As in scikit-learn: the mean over the classes that occur in this sample, as label or as prediction.
    classes = np.union1d(labels, predictions)
    occurs = [np.any((labels == which) | (predictions == which), axis=-1) for which in classes]
    return sum(_f1_of_class(labels, predictions, which) for which in classes) / np.sum(occurs, axis=0)


def _matthews(labels: Values, predictions: Values) -> NDArray[np.float64]:
    # Gorodkin's R_K, the correlation of one-hot labels and predictions.
    joint: NDArray[np.float64] | float = 0.0
    truth_squares: NDArray[np.float64] | float = 0.0
    guess_squares: NDArray[np.float64] | float = 0.0
    for which in np.union1d(labels, predictions):
        truth, guess = labels == which, predictions == which
        truth_share, guess_share = np.mean(truth, axis=-1), np.mean(guess, axis=-1)
        joint = joint + np.mean(truth & guess, axis=-1) - truth_share * guess_share
        truth_squares = truth_squares + truth_share * (1 - truth_share)
        guess_squares = guess_squares + guess_share * (1 - guess_share)
    return _ratio(joint, np.sqrt(truth_squares * guess_squares))


def _pearson(labels: Values, predictions: Values) -> NDArray[np.float64]:
    truth = labels - np.mean(labels, axis=-1, keepdims=True)
    guess = predictions - np.mean(predictions, axis=-1, keepdims=True)
    norms = np.sqrt(np.sum(truth**2, axis=-1) * np.sum(guess**2, axis=-1))
    return _ratio(np.sum(truth * guess, axis=-1), norms)


def _spearman(labels: Values, predictions: Values) -> NDArray[np.float64]:
    rank = cast("Any", scipy.stats).rankdata
    return _pearson(rank(labels, axis=-1), rank(predictions, axis=-1))


def _ratio(above: Values | float, below: Values | float) -> NDArray[np.float64]:
    """Divide; where there is nothing to divide by, nothing was learned, which is zero."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    is_defined = below > np.finfo(float).eps
    return np.where(is_defined, above / np.where(is_defined, below, 1.0), 0.0)


_CORRELATIONS = frozenset({"matthews", "pearson", "spearman"})

MEASURES: Mapping[str, Measure] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
