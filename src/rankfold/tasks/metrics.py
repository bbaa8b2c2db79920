"""Metrics: figures of predictions against labels, by name, along the last axis of an array.

A metric takes labels and predictions `[..., n]` and gives values `[...]`, so that a bootstrap computes all
its resamples at once. Metrics of other packages are recorded by name; rankfold takes them for the larger the
better, unless the name ends in `_loss` or `_error`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankfold.errors import unknown_name

Values = NDArray[Any]
MetricFunction = Callable[[Values, Values], NDArray[np.float64]]

ANSWER_LOSS = "answer_loss"
"""The mean cross-entropy of an answer's token."""

DENOISING_LOSS = "denoising_loss"
"""The mean squared error of a denoiser; a prediction is a row's error, its label that of the base model."""

DENOISING_GAIN = "denoising_gain"
"""How far an adapter lowers the denoising loss of its base model."""

UNPARSED = "unparsed"
"""The share of generated answers that name no choice; they count as wrong."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of predictions.

    Args:
        function: Labels `[..., n]` and predictions `[..., n]` give values `[...]`.
        least: The smallest value.
        most: The largest value.
        is_error: Whether smaller is better.
        counts: For labels that are lists: returns integers for each row of labels and predictions `[n]`,
            which take the place of the predictions in `function`.
    """

    function: MetricFunction
    least: float = 0.0
    most: float = 1.0
    is_error: bool = False
    counts: Callable[[Sequence[Any], Sequence[Any]], Values] | None = None


def is_smaller_better(name: str) -> bool:
    """Return whether a metric is better when it is smaller: an error, or by its name a loss or an error."""
    return METRICS[name].is_error if name in METRICS else name.endswith(("_loss", "_error"))


def find_metric(name: str) -> Metric:
    """Return the metric of a name.

    Raises:
        SpecError: If there is none, with the nearest name.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def measure(names: Sequence[str], labels: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """Return metrics of predictions.

    Args:
        names: Keys of `METRICS`.
        labels: The right values.
        predictions: In the same order.

    Raises:
        SpecError: If a metric is unknown.
    """
    functions = {name: find_metric(name).function for name in names}
    truth, guess = np.asarray(labels), np.asarray(predictions)
    return {name: float(function(truth, guess)) for name, function in functions.items()}


def most_common(labels: Sequence[Any]) -> Any:
    """Return the commonest label, of several the smallest: the prediction of a model that never looks."""
    return min(Counter(labels).items(), key=lambda item: (-item[1], item[0]))[0]


def _accuracy(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return np.mean(labels == predictions, axis=-1)


def _f1(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return _f1_of_class(labels, predictions, 1)


def _f1_of_class(labels: Values, predictions: Values, label: object) -> NDArray[np.float64]:
    truth, guess = labels == label, predictions == label
    hits = np.sum(truth & guess, axis=-1)
    return ratio(2 * hits, np.sum(truth, axis=-1) + np.sum(guess, axis=-1))


def _precision_of_class(labels: Values, predictions: Values, label: object) -> NDArray[np.float64]:
    guess = predictions == label
    return ratio(np.sum((labels == label) & guess, axis=-1), np.sum(guess, axis=-1))


def _recall_of_class(labels: Values, predictions: Values, label: object) -> NDArray[np.float64]:
    return _precision_of_class(predictions, labels, label)


def _mean_over_classes(of_class: Callable[..., NDArray[np.float64]]) -> MetricFunction:
    """Return the mean of a metric of one class over the classes, as scikit-learn has it.

    These are the classes that occur in the sample, as label or as prediction.
    """

    def mean(labels: Values, predictions: Values) -> NDArray[np.float64]:
        classes = np.union1d(labels, predictions)
        occurs = [np.any((labels == label) | (predictions == label), axis=-1) for label in classes]
        return sum(of_class(labels, predictions, label) for label in classes) / np.sum(occurs, axis=0)

    return mean


def _weighted_f1(labels: Values, predictions: Values) -> NDArray[np.float64]:
    shares = [(label, np.mean(labels == label, axis=-1)) for label in np.unique(labels)]
    return np.sum([share * _f1_of_class(labels, predictions, label) for label, share in shares], axis=0)


def _balanced_accuracy(labels: Values, predictions: Values) -> NDArray[np.float64]:
    classes = np.unique(labels)
    recalls = [_recall_of_class(labels, predictions, label) for label in classes]
    return np.sum(recalls, axis=0) / np.sum([np.any(labels == label, axis=-1) for label in classes], axis=0)


def _matthews(labels: Values, predictions: Values) -> NDArray[np.float64]:
    # Gorodkin's R_K, the correlation of one-hot labels and predictions.
    joint: NDArray[np.float64] | float = 0.0
    truth_squares: NDArray[np.float64] | float = 0.0
    guess_squares: NDArray[np.float64] | float = 0.0
    for label in np.union1d(labels, predictions):
        truth, guess = labels == label, predictions == label
        truth_share, guess_share = np.mean(truth, axis=-1), np.mean(guess, axis=-1)
        joint = joint + np.mean(truth & guess, axis=-1) - truth_share * guess_share
        truth_squares = truth_squares + truth_share * (1 - truth_share)
        guess_squares = guess_squares + guess_share * (1 - guess_share)
    return ratio(joint, np.sqrt(truth_squares * guess_squares))


def _pearson(labels: Values, predictions: Values) -> NDArray[np.float64]:
    truth = labels - np.mean(labels, axis=-1, keepdims=True)
    guess = predictions - np.mean(predictions, axis=-1, keepdims=True)
    norms = np.sqrt(np.sum(truth**2, axis=-1) * np.sum(guess**2, axis=-1))
    return ratio(np.sum(truth * guess, axis=-1), norms)


def _spearman(labels: Values, predictions: Values) -> NDArray[np.float64]:
    import scipy.stats  # of an extra, and slow to import

    rank = cast("Any", scipy.stats).rankdata
    return _pearson(rank(labels, axis=-1), rank(predictions, axis=-1))


def _r2(labels: Values, predictions: Values) -> NDArray[np.float64]:
    spread = np.sum((labels - np.mean(labels, axis=-1, keepdims=True)) ** 2, axis=-1)
    is_defined = spread > 0
    misfit = np.sum((labels - predictions) ** 2, axis=-1)
    return np.where(is_defined, 1 - misfit / np.where(is_defined, spread, 1.0), 0.0)


def _rmse(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return np.sqrt(np.mean((labels - predictions) ** 2, axis=-1))


def _mae(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return np.mean(np.abs(labels - predictions), axis=-1)


def _mean_prediction(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return np.mean(predictions, axis=-1)


def _mean_excess(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return np.mean(labels - predictions, axis=-1)


def ratio(above: Values | float, below: Values | float) -> NDArray[np.float64]:
    """Divide; where there is nothing to divide by, nothing was learned, which is zero."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    is_defined = below > np.finfo(float).eps
    return np.where(is_defined, above / np.where(is_defined, below, 1.0), 0.0)


def _exact_match(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return _mean_of_pairs(lambda label, prediction: float(label == prediction), labels, predictions)


def _rouge_l(labels: Values, predictions: Values) -> NDArray[np.float64]:
    return _mean_of_pairs(_rouge_l_of_texts, labels, predictions)


def _mean_of_pairs(
    score: Callable[[str, str], float], labels: Values, predictions: Values
) -> NDArray[np.float64]:
    """Return the mean score of texts, without the space around them and with one space for several."""

    def score_pair(label: object, prediction: object) -> float:
        return score(" ".join(str(label).split()), " ".join(str(prediction).split()))

    return np.asarray(np.vectorize(score_pair, otypes=[float])(labels, predictions)).mean(axis=-1)


@lru_cache(maxsize=100_000)  # a bootstrap asks for the same pairs again and again
def _rouge_l_of_texts(label: str, prediction: str) -> float:
    """F1 of the longest common subsequence of words, in any case (Lin, "ROUGE", ACL 2004, section 3)."""
    one, other = (re.findall(r"\w+", text.lower()) for text in (label, prediction))
    if not one or not other:
        return float(one == other)
    lengths = [0] * (len(other) + 1)
    for word in one:
        previous = lengths
        lengths = [0]
        for index, candidate in enumerate(other):
            step = previous[index] + 1 if word == candidate else max(previous[index + 1], lengths[-1])
            lengths.append(step)
    return 2 * lengths[-1] / (len(one) + len(other))


TEXT_METRICS = ("exact_match", "rouge_l")
"""Metrics of texts that a model has written, which takes much longer than measuring their loss."""

METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "f1": Metric(_f1),
    "macro_f1": Metric(_mean_over_classes(_f1_of_class)),
    "weighted_f1": Metric(_weighted_f1),
    "macro_precision": Metric(_mean_over_classes(_precision_of_class)),
    "macro_recall": Metric(_mean_over_classes(_recall_of_class)),
    "balanced_accuracy": Metric(_balanced_accuracy),
    "matthews": Metric(_matthews, least=-1.0),
    "pearson": Metric(_pearson, least=-1.0),
    "spearman": Metric(_spearman, least=-1.0),
    "r2": Metric(_r2, least=-math.inf),
    "rmse": Metric(_rmse, most=math.inf, is_error=True),
    "mae": Metric(_mae, most=math.inf, is_error=True),
    DENOISING_LOSS: Metric(_mean_prediction, most=math.inf, is_error=True),
    DENOISING_GAIN: Metric(_mean_excess, least=-math.inf, most=math.inf),
    "exact_match": Metric(_exact_match),
    "rouge_l": Metric(_rouge_l),
}
"""Metrics by name. `f1` is that of class 1; a correlation with a constant is zero."""

_OTHER_NAMES = {
    "acc": "accuracy",
    "mcc": "matthews",
    "matthews_correlation": "matthews",
    "matthews_corrcoef": "matthews",
    "f1_macro": "macro_f1",
    "f1_weighted": "weighted_f1",
    "precision": "macro_precision",
    "recall": "macro_recall",
    "precision_macro": "macro_precision",
    "recall_macro": "macro_recall",
    "auc": "auroc",
    "roc_auc": "auroc",
    "f1_micro": "micro_f1",
    "r_squared": "r2",
    "em": "exact_match",
    "rouge": "rouge_l",
    "rougel": "rouge_l",
}


AUROC = "auroc"
"""The area under the ROC curve, of more than two classes the mean over each against the rest."""


def auroc(labels: Sequence[int], probabilities: ArrayLike) -> float:
    """Return the area under the ROC curve; 0.5 where the labels are of one class.

    Args:
        labels: Class ids.
        probabilities: Of each class, one row for each label.
    """
    import sklearn.metrics  # of an extra, and slow to import

    truth, scores = np.asarray(labels), np.asarray(probabilities)
    area = cast("Any", sklearn.metrics).roc_auc_score
    present = [label for label in np.unique(truth) if not np.all(truth == label)]
    # Of two classes both have the same area.
    areas = [float(area(truth == label, scores[:, label])) for label in present]
    return float(np.mean(areas)) if areas else 0.5


def balanced_weights(labels: Sequence[int], count: int) -> list[float]:
    """Return a weight for each class with which all classes count alike: `rows / (classes * its rows)`.

    Args:
        labels: Class ids.
        count: The number of classes; one without rows has the weight 1.
    """
    rows = Counter(labels)
    return [len(labels) / (len(rows) * rows[label]) if rows[label] else 1.0 for label in range(count)]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Precision, recall and F1 of one class, with the rows that have it and those that are predicted to.

    A ratio is None where there is nothing to divide by.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    rows: int
    predicted: int


def per_class(labels: Sequence[Any], predictions: Sequence[Any], names: Sequence[str]) -> list[ClassFigures]:
    """Return the figures of each class, the most frequent first.

    Args:
        labels: Class ids, or lists of class names.
        predictions: In the same order.
        names: The classes in the order of their ids.
    """
    truth, guess = (set(_class_rows(values, names)) for values in (labels, predictions))
    rows, predicted, hits = (Counter(name for _, name in part) for part in (truth, guess, truth & guess))
    figures = [
        ClassFigures(
            name,
            hits[name] / predicted[name] if predicted[name] else None,
            hits[name] / rows[name] if rows[name] else None,
            2 * hits[name] / (rows[name] + predicted[name]) if rows[name] + predicted[name] else None,
            rows[name],
            predicted[name],
        )
        for name in names
    ]
    return sorted(figures, key=lambda item: -item.rows)


def _class_rows(values: Sequence[Any], names: Sequence[str]) -> list[tuple[int, str]]:
    """Return each row with each of its classes by name."""
    rows = [cast("list[str]", value if isinstance(value, list) else [names[value]]) for value in values]
    return [(row, name) for row, own_names in enumerate(rows) for name in own_names]


def metric_name(name: str, names: Sequence[str], task: str) -> str:
    """Return our name of a metric that somebody has asked for.

    Args:
        name: Ours, or one that other libraries have for it; case and hyphens make no difference.
        names: Those that the kind of task has.
        task: The kind of task, for the error.

    Raises:
        SpecError: If the kind has no such metric, with the nearest one.
    """
    plain = name.strip().lower().replace("-", "_")
    own_name = plain if plain in names else _OTHER_NAMES.get(plain, plain)
    if own_name not in names:
        raise unknown_name(f"metric of '{task}'", name, names)
    return own_name
