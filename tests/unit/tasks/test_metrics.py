"""Metrics against their definitions."""

import math

import pytest

from rankfold.errors import SpecError
from rankfold.models.kind import Kind
from rankfold.tasks.metrics import METRICS, default_metrics, measure, trivial_predictions

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


def test_the_trivial_prediction_is_the_commonest_label_or_the_mean():
    assert trivial_predictions(Kind.CLASSIFICATION, [2, 0, 2, 1], 3) == [2, 2, 2]
    assert trivial_predictions(Kind.REGRESSION, [1.0, 2.0, 6.0], 2) == [3.0, 3.0]


@pytest.mark.parametrize("kind", [Kind.CLASSIFICATION, Kind.REGRESSION])
def test_data_without_a_name_has_metrics_that_exist(kind):
    assert set(default_metrics(kind, 2)) | set(default_metrics(kind, 5)) <= set(METRICS)
