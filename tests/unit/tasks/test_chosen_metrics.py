"""Metrics by name, figures of classes, and weights of classes."""

from collections import Counter

import numpy as np
import pytest
import sklearn.metrics
import sklearn.utils.class_weight
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from rankfold.errors import SpecError
from rankfold.tasks import TaskRequest, choose_metrics, load_task
from rankfold.tasks.kinds import KINDS, Examples
from rankfold.tasks.kinds.labelled import Example
from rankfold.tasks.kinds.token_labels import TokenExample
from rankfold.tasks.metrics import auroc, balanced_weights, metric_name, per_class
from tests.support.tiny_models import review_rows, write_splits

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)
NAMES = ("a", "b", "c", "d")


@given(pairs=PAIRS)
def test_figures_of_classes_equal_those_of_scikit_learn(pairs):
    labels, predictions = zip(*pairs, strict=True)
    expected = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(4), zero_division=np.nan
    )
    for item in per_class(labels, predictions, NAMES):
        place = NAMES.index(item.name)
        ours = [np.nan if value is None else value for value in (item.precision, item.recall, item.f1)]
        np.testing.assert_allclose([*ours, item.rows], [part[place] for part in expected])


@given(rows=st.lists(st.tuples(*[st.sets(st.sampled_from(NAMES))] * 2), min_size=1))
def test_figures_of_sets_count_each_name_of_a_row(rows):
    labels, predictions = ([sorted(row[place]) for row in rows] for place in (0, 1))
    for item in per_class(labels, predictions, NAMES):
        truth, guess = ([item.name in row for row in part] for part in (labels, predictions))
        assert (item.rows, item.predicted) == (sum(truth), sum(guess))
        hits = sum(map(lambda a, b: a and b, truth, guess))
        assert item.recall == (hits / sum(truth) if any(truth) else None)


@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_area_is_the_chance_that_a_row_of_a_class_is_above_one_of_the_others(labels, seed):
    scores = np.random.default_rng(seed).integers(0, 5, (len(labels), 3))
    areas = []
    for label in sorted(set(labels)):
        inside = [row[label] for row, other in zip(scores, labels, strict=True) if other == label]
        outside = [row[label] for row, other in zip(scores, labels, strict=True) if other != label]
        wins = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
        areas += [np.mean(wins)] if wins else []
    assert auroc(labels, scores) == pytest.approx(np.mean(areas) if areas else 0.5)


@given(labels=st.lists(st.integers(0, 3), min_size=1))
def test_balanced_weights_are_those_of_scikit_learn(labels):
    present = sorted(set(labels))
    expected = sklearn.utils.class_weight.compute_class_weight(
        "balanced", classes=np.array(present), y=labels
    )
    weights = balanced_weights(labels, 4)
    np.testing.assert_allclose([weights[label] for label in present], expected)


@pytest.mark.parametrize(
    ("name", "own"),
    [("mcc", "matthews"), ("F1-macro", "macro_f1"), ("macro_f1", "macro_f1"), ("ROC_AUC", "auroc")],
)
def test_names_of_other_libraries_are_known(name, own):
    assert metric_name(name, KINDS["classification"].metric_names, "classification") == own


def test_metric_of_another_kind_is_refused():
    with pytest.raises(SpecError, match="unknown metric 'rmse' of 'classification'"):
        metric_name("rmse", KINDS["classification"].metric_names, "classification")


def test_chosen_metrics_come_first_and_the_usual_ones_stay(tmp_path):
    data = load_task(
        TaskRequest(data=str(write_splits(tmp_path / "d", train=review_rows(20)))), is_causal=False
    )
    assert choose_metrics(data, ("mcc", "f1")).task.metrics == ("matthews", "f1", "accuracy")
    assert choose_metrics(data, ()) == data


class _Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self):
        return self


@pytest.mark.parametrize("name", ["classification", "multi_label"])
def test_weighted_loss_counts_every_class_alike(name):
    """Ninety-nine rows of one class and one of the other weigh the same."""
    is_list = name == "multi_label"
    labels = [0] * 99 + [1]
    rows = [
        Example(n, "a", None, [["a"], ["b"]][label] if is_list else label) for n, label in enumerate(labels)
    ]
    kind = KINDS[name].weigh_classes(Examples(("a", "b"), {"train": rows}))
    assert kind.has_own_loss
    assert not KINDS[name].has_own_loss
    logits = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor(labels)
    if is_list:
        targets = functional.one_hot(truth).float()
        weights = torch.tensor([1 / 99, 99.0])
        losses = functional.softplus(-logits) * targets * weights + functional.softplus(logits) * (
            1 - targets
        )
        expected = losses.mean()
    else:
        targets = truth
        losses = functional.cross_entropy(logits, truth, reduction="none")
        expected = (losses[:99].mean() + losses[99]) / 2
    torch.testing.assert_close(kind.loss(_Fixed(logits), {"labels": targets}), expected)


def test_weighted_loss_counts_every_tag_alike_and_no_piece_without_one():
    tags, others = ["O"] * 6 + ["B"] * 2, ["O"]
    rows = [TokenExample(n, ("w",) * len(row), row) for n, row in enumerate((tags, others))]
    kind = KINDS["token_labels"].weigh_classes(Examples(("O", "B"), {"train": rows}))
    logits = torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 0, 0, 0, -100, 0, 0, 0, 0, 1, 1, -100]])
    losses = functional.cross_entropy(logits[0], labels[0], reduction="none")
    expected = (losses[labels[0] == 0].mean() + losses[labels[0] == 1].mean()) / 2
    torch.testing.assert_close(kind.loss(_Fixed(logits), {"labels": labels}), expected)
    assert kind.loss_items({"labels": labels}) == pytest.approx(9.0)
    named = KINDS["token_labels"].weigh_classes(Examples(("O", "B"), {"train": rows}), {"B": 4.0})
    assert named.loss_items({"labels": labels}) == 7 + 2 * 4


@pytest.mark.parametrize("name", ["regression", "instruction"])
def test_kinds_without_classes_have_no_weights(name):
    with pytest.raises(SpecError, match="class weights are for kinds with classes"):
        KINDS[name].weigh_classes(Examples(None, {"train": []}))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_balanced_sampling_has_every_row_and_as_many_of_each_class(labels):
    examples = [Example(index, "a", None, label) for index, label in enumerate(labels)]
    order = KINDS["classification"].balanced_order(examples)
    assert order[: len(labels)] == list(range(len(labels)))
    counts = Counter(labels[index] for index in order)
    assert set(counts.values()) == {max(Counter(labels).values())}
    repeats = Counter(order)
    for label in counts:
        own = [repeats[index] for index, other in enumerate(labels) if other == label]
        assert max(own) - min(own) <= 1


def test_weights_by_name_are_those_of_the_classes():
    rows = [Example(index, "a", None, index % 2) for index in range(4)]
    kind = KINDS["classification"].weigh_classes(Examples(("a", "b"), {"train": rows}), {"b": 3.0})
    assert kind.loss_items({"labels": torch.tensor([0, 1, 1])}) == 7.0
