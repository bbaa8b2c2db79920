"""The statistics agree with theory and with plain computation."""

import numpy as np
import pytest

from rankfold.bench.statistics.comparison import (
    Difference,
    Interval,
    Scores,
    metric_interval,
    paired_difference,
    verdicts,
)
from rankfold.bench.statistics.confidence import MeanEstimate
from rankfold.errors import DataError, SpecError
from rankfold.tasks.metrics import METRICS


def draw(accuracy, *, examples=300, seeds=(0,), key=0, classes=3):
    generator = np.random.default_rng(key)
    labels = np.random.default_rng(7).integers(0, classes, examples)
    hits = generator.random((len(seeds), examples)) < accuracy
    return Scores(labels, np.where(hits, labels, (labels + 1) % classes), tuple(seeds))


def test_accuracy_of_one_seed_has_wilsons_interval():
    scores = Scores(np.ones(10, dtype=int), np.array([[1] * 8 + [0] * 2]), (0,))
    interval = metric_interval(scores, "accuracy")
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (0.8, 0.4901625, 0.9433178), rel=1e-6
    )


def alike(hits, examples, seeds):
    row = [1] * hits + [0] * (examples - hits)
    return Scores(np.ones(examples, dtype=int), np.array([row] * seeds), tuple(range(seeds)))


@pytest.mark.parametrize("hits", [0, 1, 48, 49, 50])
def test_seeds_that_say_the_same_make_an_accuracy_no_surer_than_one_of_them(hits):
    one, three = (metric_interval(alike(hits, 50, seeds), "accuracy") for seeds in (1, 3))
    assert three.low <= one.low + 0.01
    assert three.high >= one.high - 0.01
    assert three.low < three.high


def test_accuracy_stays_inside_zero_and_one_when_every_answer_is_right():
    interval = metric_interval(Scores(np.ones(50, dtype=int), np.ones((1, 50), dtype=int), (0,)), "accuracy")
    assert interval.low < interval.value == interval.high == 1.0


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["one seed", "three seeds"])
def test_interval_contains_its_value_and_repeats(metric, seeds):
    scores = draw(0.8, seeds=seeds, classes=2)
    interval = metric_interval(scores, metric)
    assert interval.low < interval.value < interval.high
    assert metric_interval(scores, metric) == interval


def test_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for key in range(200):
        interval = metric_interval(draw(0.8, examples=100, seeds=(0, 1), key=key), "accuracy")
        covered += interval.low <= 0.8 <= interval.high
    assert covered >= 184


def test_seeds_that_disagree_widen_the_interval():
    labels = np.ones(400, dtype=int)
    agreeing = np.tile(np.arange(400) % 5 > 0, (4, 1)).astype(int)
    shares = np.array([[0.6], [0.7], [0.9], [1.0]])
    disagreeing = (
        np.random.default_rng(0).permuted(np.tile(np.linspace(0, 0.999, 400), (4, 1)), axis=1) < shares
    )
    calm = metric_interval(Scores(labels, agreeing, (0, 1, 2, 3)), "accuracy")
    wild = metric_interval(Scores(labels, disagreeing.astype(int), (0, 1, 2, 3)), "accuracy")
    assert wild.value == pytest.approx(calm.value, abs=0.01)
    assert wild.high - wild.low > 2 * (calm.high - calm.low)


@pytest.mark.parametrize("seeds", [(0,), tuple(range(5))], ids=["one seed", "five seeds"])
def test_difference_is_antisymmetric_in_value(seeds):
    first, second = draw(0.9, seeds=seeds, key=1), draw(0.7, seeds=seeds, key=2)
    there, back = (paired_difference(a, b, "accuracy") for a, b in ((first, second), (second, first)))
    assert there.interval.value == pytest.approx(-back.interval.value)
    assert there.interval.low > 0 > back.interval.high
    assert there.p_value == back.p_value < 0.01


def test_difference_of_a_method_with_itself_is_zero_and_sure_of_nothing():
    scores = draw(0.8)
    difference = paired_difference(scores, scores, "accuracy")
    assert (difference.interval, difference.p_value) == (Interval(0.0, 0.0, 0.0), 1.0)
    assert verdicts([difference]) == ["not separated"]


def test_difference_uses_only_the_seeds_that_both_have():
    ours, reference = draw(0.9, seeds=(0, 1, 2), key=1), draw(0.7, seeds=(2, 0, 9), key=2)
    expected = paired_difference(ours.of_seeds((0, 2)), reference.of_seeds((0, 2)), "accuracy")
    assert paired_difference(ours, reference, "accuracy") == expected


def test_pairing_separates_what_unpaired_intervals_do_not():
    reference = draw(0.8, examples=400)
    improved = reference.predictions.copy()
    wrong = np.flatnonzero(improved[0] != reference.labels)[:12]
    improved[0, wrong] = reference.labels[wrong]
    ours = Scores(reference.labels, improved, (0,))
    unpaired = metric_interval(ours, "accuracy"), metric_interval(reference, "accuracy")
    assert unpaired[0].low < unpaired[1].high
    assert verdicts([paired_difference(ours, reference, "accuracy")]) == ["better"]


def estimated(value, error=0.0, *, is_error=False):
    """Return a difference of many seeds and examples with a standard error."""
    return Difference(MeanEstimate(value, 1000, 10_000, error, 0.0, error), is_error=is_error)


def test_verdict_is_lost_when_many_comparisons_are_made():
    weak, null = estimated(0.02, 0.0098), estimated(0.0001, 0.005)
    assert verdicts([weak]) == ["better"]
    assert verdicts([weak, null, null]) == ["not separated"] * 3


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0.1, 0.001, "better"),
        (-0.1, 0.001, "worse"),
        (0.0, 0.003, "equivalent"),
        (0.009, 0.005, "not inferior"),
        (0.0, 0.01, "not separated"),
        (-0.009, 0.005, "not separated"),
    ],
)
def test_verdict_names_the_direction_or_how_near_the_two_are(value, error, expected):
    assert verdicts([estimated(value, error)], margin=0.01) == [expected]
    assert verdicts([estimated(-value, error, is_error=True)], margin=0.01) == [expected]
    assert verdicts([]) == []
    without = expected if expected in ("better", "worse") else "not separated"
    assert verdicts([estimated(value, error)]) == [without]


def test_scores_refuse_what_does_not_fit():
    with pytest.raises(DataError, match="no predictions"):
        Scores(np.array([]), np.zeros((1, 0)), (0,))
    with pytest.raises(DataError, match="one row per seed"):
        Scores(np.arange(3), np.zeros((2, 3)), (0,))


def test_difference_refuses_runs_that_cannot_be_paired():
    one = draw(0.8)
    with pytest.raises(DataError, match="different examples"):
        paired_difference(one, draw(0.8, classes=2), "accuracy")
    with pytest.raises(DataError, match="share no seed"):
        paired_difference(one, draw(0.8, seeds=(5,)), "accuracy")


def test_metric_that_is_not_known_is_refused_with_a_suggestion():
    with pytest.raises(SpecError, match="Did you mean 'accuracy'"):
        metric_interval(draw(0.8), "acuracy")


def test_single_example_leaves_nearly_everything_open():
    interval = metric_interval(Scores(np.array([1]), np.array([[1], [0]]), (0, 1)), "accuracy")
    assert interval.value == 0.5
    assert (interval.low < 0.1, interval.high > 0.9) == (True, True)
