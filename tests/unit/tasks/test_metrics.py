"""Metrics against their definitions."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from rankfold.errors import SpecError
from rankfold.tasks.kinds import Examples
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.regression import KIND as REGRESSION
from rankfold.tasks.metrics import (
    DENOISING_GAIN,
    DENOISING_LOSS,
    METRICS,
    TEXT_METRICS,
    is_smaller_better,
    measure,
)

LABELS = [1, 1, 1, 0, 0, 0, 0, 1]
PREDICTIONS = [1, 0, 1, 0, 1, 0, 0, 1]  # 3 hits of class 1, 1 miss, 1 false alarm, 3 hits of class 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 6 / 8),
        ("f1", 2 * 3 / (2 * 3 + 1 + 1)),
        ("macro_f1", 0.75),
        ("matthews", (3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4)),
    ],
)
def test_a_class_metric_equals_its_definition(name, value):
    assert measure([name], LABELS, PREDICTIONS)[name] == pytest.approx(value)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(("slope", "value"), [(2.0, 1.0), (-0.5, -1.0)])
def test_a_line_correlates_perfectly(name, slope, value):
    labels = [0.0, 1.0, 2.5, 4.0]
    assert measure([name], labels, [slope * label + 1 for label in labels])[name] == pytest.approx(value)


def test_spearman_sees_only_the_order():
    labels = [0.0, 1.0, 2.0, 3.0]
    values = measure(["pearson", "spearman"], labels, [math.exp(3 * label) for label in labels])
    assert values["spearman"] == pytest.approx(1.0)
    assert values["pearson"] < 0.9


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_model_that_never_looks_has_a_finite_value(name):
    assert math.isfinite(measure([name], [0, 1, 1], [0, 0, 0])[name])


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
def test_a_constant_correlates_with_nothing(name):
    assert measure([name], [0, 1, 1], [1, 1, 1])[name] == 0.0


def test_an_unknown_metric_has_a_suggestion():
    with pytest.raises(SpecError, match="Did you mean 'accuracy'"):
        measure(["acuracy"], [0], [0])


def _constant(kind, labels):
    ((_, constant),) = kind.baselines.items()
    return constant(labels)


def test_the_trivial_prediction_is_the_commonest_label_or_the_mean():
    assert _constant(CLASSIFICATION, [2, 0, 2, 1]) == 2
    assert _constant(CLASSIFICATION, [2, 0, 2, 0]) == 0
    assert _constant(REGRESSION, [1.0, 2.0, 6.0]) == 3.0


@pytest.mark.parametrize("kind", [CLASSIFICATION, REGRESSION])
@pytest.mark.parametrize("names", [None, ("a", "b"), ("a", "b", "c")])
def test_data_without_a_name_has_metrics_that_exist(kind, names):
    assert set(kind.metrics(Examples(names, {}))) <= set(METRICS)


def _library(name, labels, predictions):
    """Return a metric as scikit-learn or scipy has it."""
    if name in ("pearson", "spearman"):
        return getattr(scipy.stats, f"{name}r")(labels, predictions)[0]
    average, _, score = name.rpartition("_") if name != "balanced_accuracy" else ("", "", name)
    options = {"average": average, "zero_division": 0.0} if average else {}
    return getattr(sklearn.metrics, _LIBRARY_NAMES.get(score, f"{score}_score"))(
        labels, predictions, **options
    )


_LIBRARY_NAMES = {
    "matthews": "matthews_corrcoef",
    "rmse": "root_mean_squared_error",
    "mae": "mean_absolute_error",
}


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        (name, n)
        for name in sorted(set(METRICS) - {*TEXT_METRICS, DENOISING_LOSS, DENOISING_GAIN})
        for n in (2, 4)
        if (name, n) != ("f1", 4)
    ],
)
def test_metrics_of_many_samples_at_once_equal_those_of_the_libraries_one_by_one(name, classes):
    generator = np.random.default_rng(3)
    labels, predictions = generator.integers(0, classes, (2, 40, 25))
    predictions = np.where(generator.random((40, 25)) < 0.5, labels, predictions)
    if name in ("pearson", "spearman", "r2", "rmse", "mae"):
        predictions = predictions + np.round(generator.normal(size=predictions.shape), 1)
    expected = [_library(name, a, b) for a, b in zip(labels, predictions, strict=True)]
    np.testing.assert_allclose(METRICS[name].function(labels, predictions), expected, rtol=1e-9, atol=1e-12)
    singly = [measure([name], a.tolist(), b.tolist())[name] for a, b in zip(labels, predictions, strict=True)]
    np.testing.assert_allclose(singly, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"), [("answer_loss", True), ("absolute_error", True), ("f1", False)]
)
def test_losses_and_errors_are_better_when_smaller(name, expected):
    assert is_smaller_better(name) is expected
