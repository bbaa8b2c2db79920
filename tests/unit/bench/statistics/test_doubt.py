"""Equal methods are called different no more often than is said, however much seeds and examples matter."""

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from rankfold.bench.statistics.comparison import (
    Scores,
    holm_rejections,
    metric_interval,
    paired_difference,
    verdicts,
)
from rankfold.bench.statistics.confidence import MeanEstimate, mean_estimate

DRAWS = 1500
EXAMPLES = 1000

# Standard deviations of the seeds, of the examples in all seeds alike, and in each seed apart.
NOISES = [(0, 1, 0.3), (0, 0.3, 1), (1, 1, 0.3), (1, 0.3, 1), (5, 1, 1), (1, 0, 0)]

positive = st.floats(1e-6, 1e3)
doubts = st.builds(
    MeanEstimate,
    st.floats(-1e3, 1e3),
    st.integers(1, 10),
    st.integers(2, 10_000),
    positive,
    positive,
    positive,
)


def null_doubts(seeds, noise, key):
    """Return measurements of what is zero, with the doubt that the noise and the seeds' spread give."""
    of_seeds, shared, apart = noise
    generator = np.random.default_rng(key)
    for _ in range(DRAWS):
        each = generator.normal(0, math.hypot(of_seeds, apart), seeds) + generator.normal(0, shared)
        spread = np.std(each, ddof=1) / math.sqrt(seeds)
        yield MeanEstimate(
            each.mean(), seeds, EXAMPLES, spread, shared, math.hypot(shared, apart / seeds**0.5)
        )


def equal_methods(seeds, spread, key, *, methods=2, examples=120):
    """Return predictions of methods that are equally good but for luck with the seed."""
    generator = np.random.default_rng(key)
    labels = generator.integers(0, 2, examples)
    ease = generator.normal(1.2, 1.0, examples)
    skill = generator.normal(0, spread, (methods, seeds, 1))
    right = generator.random((methods, seeds, examples)) < 1 / (1 + np.exp(-ease - skill))
    return [Scores(labels, np.where(each, labels, 1 - labels), tuple(range(seeds))) for each in right]


@pytest.mark.parametrize("chance", [0.05, 0.005])
@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_what_is_zero_is_called_something_no_more_often_than_is_said(seeds, noise, chance):
    false = sum(abs(one.value) > one.half_width(1 - chance) for one in null_doubts(seeds, noise, key=seeds))
    assert false <= DRAWS * chance + 3 * math.sqrt(DRAWS * chance)


def test_a_normal_quantile_for_the_seeds_would_be_found_out():
    false = sum(abs(one.value) > 1.96 * one.spread for one in null_doubts(3, (5, 1, 1), key=0))
    assert false > DRAWS * 0.15


@pytest.mark.parametrize("spread", [0.0, 0.15, 0.4])
def test_equal_methods_are_rarely_called_different_whether_seeds_matter_or_not(spread):
    pairs = [equal_methods(3, spread, key) for key in range(200)]
    false = sum(paired_difference(*pair, "accuracy").p_value < 0.05 for pair in pairs)
    assert false <= 17  # 10 are said; 17 are less probable than one in fifty


def test_one_seed_knows_nothing_of_seeds_which_the_same_count_shows():
    pairs = [[each.of_seeds([0]) for each in equal_methods(3, 0.4, key)] for key in range(200)]
    false = sum(paired_difference(*pair, "accuracy").p_value < 0.05 for pair in pairs)
    assert false > 30


def test_a_table_of_equal_methods_has_rarely_a_verdict():
    false = 0
    for key in range(30):
        first, *others = equal_methods(3, 0.3, key, methods=6)
        differences = [paired_difference(each, first, "accuracy") for each in others]
        false += set(verdicts(differences)) != {"not separated"}
    assert false <= 5  # 1.5 are said


@given(doubts, st.floats(0.01, 0.99))
def test_p_value_and_interval_say_the_same(doubt, level):
    half = doubt.half_width(level)
    coins = 2.0 ** (1 - doubt.examples)
    for sign in (-1, 1):
        assert doubt.p_value(doubt.value + sign * half) == pytest.approx(max(1 - level, coins), rel=1e-4)


@given(doubts, st.floats(0, 1e3), st.floats(0, 1e3))
def test_what_is_further_away_is_less_probable(doubt, near, more):
    assert doubt.p_value(doubt.value + near + more) <= doubt.p_value(doubt.value + near) * (1 + 1e-9)
    assert doubt.p_value(doubt.value) == 1


def test_what_is_sure_is_separated_among_thousands_of_comparisons():
    labels = np.ones(2000, dtype=int)
    ours, reference = (Scores(labels, np.full((5, 2000), guess), tuple(range(5))) for guess in (1, 0))
    sure = paired_difference(ours, reference, "accuracy")
    assert all(holm_rejections([sure.p_value] * 2000))


@given(st.lists(st.floats(0, 1) | st.floats(0, 0.06) | st.just(0.05), max_size=12))
def test_correction_is_the_one_of_statsmodels(p_values):
    expected = multipletests(p_values, method="holm")[0].tolist() if p_values else []
    assert holm_rejections(p_values) == expected


def test_few_examples_are_no_surer_than_tosses_of_a_coin():
    labels = np.ones(4, dtype=int)
    ours, reference = (Scores(labels, np.full((1, 4), guess), (0,)) for guess in (1, 0))
    assert paired_difference(ours, reference, "accuracy").p_value == 2**-3


@pytest.mark.parametrize(("metric", "least"), [("accuracy", 0), ("f1", 0), ("matthews", -1), ("pearson", -1)])
def test_interval_stays_in_the_range_of_the_metric(metric, least):
    labels = np.arange(40) % 2
    scores = Scores(labels, np.stack([labels, 1 - labels]), (0, 1))
    interval = metric_interval(scores, metric)
    assert (interval.low, interval.high) == (least, 1)


def test_bootstrap_finds_what_theory_says_of_the_examples():
    generator = np.random.default_rng(0)
    hits = (generator.random((1, 900)) < 0.8).astype(int)
    interval = metric_interval(Scores(np.ones(900, dtype=int), np.tile(hits, (2, 1)), (0, 1)), "accuracy")
    share = hits.mean()
    assert (interval.high - interval.low) / 2 == pytest.approx(
        1.96 * math.sqrt(share * (1 - share) / 900), rel=0.1
    )


@pytest.mark.parametrize("bound", [-0.05, 0.05])
def test_examples_without_a_difference_are_as_sure_of_none_as_their_number_lets_them(bound):
    same = [MeanEstimate(0.0, 3, examples, 0.0, 0.0, 0.0) for examples in (24, 240)]
    assert [each.p_value(bound) for each in same] == pytest.approx([0.95**24, 0.95**240])
    assert MeanEstimate(0.5, 3, 24, 0.0, 0.0, 0.0).p_value(0.05) == 2.0**-23


def task_doubts(key, *, seeds=4, tasks=3, noise=(1, 1, 0.3), truth=0.0):
    """Return measurements of a mean over tasks, each with its own noise."""
    draws = [
        null_doubts(seeds, tuple((1 + task) * part for part in noise), key=[key, task])
        for task in range(tasks)
    ]
    for estimates in zip(*draws, strict=True):
        pooled = mean_estimate(estimates)
        yield replace(pooled, value=pooled.value + truth)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_interval_of_a_mean_over_tasks_misses_the_truth_no_more_often_than_is_said(noise):
    draws = list(task_doubts(1, noise=noise))
    missed = sum(abs(one.value) > one.half_width(0.95) for one in draws)
    assert missed <= DRAWS * 0.05 + 3 * math.sqrt(DRAWS * 0.05)
    normal = sum(abs(one.value) > 1.96 * math.hypot(one.spread, one.shared) for one in draws)
    if noise == (1, 0, 0):  # only seeds matter: a normal quantile for them is found out
        assert normal > DRAWS * 0.07


def root_mean_square(values):
    """Return the average by which the squares of standard errors are unbiased."""
    return math.sqrt(np.mean(np.square(list(values))))


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("seeds", [3, 5])
def test_difference_that_is_called_detectable_is_found_four_times_of_five(noise, seeds):
    """The formula against simulation: neither much less power than it says, nor far too careful."""
    size = root_mean_square(one.detectable(0.95) for one in null_doubts(seeds, noise, key=1))
    found = np.mean(
        [abs(one.value + size) > one.half_width(0.95) for one in null_doubts(seeds, noise, key=2)]
    )
    assert 0.75 < found < 0.86
    half = [abs(one.value + size / 2) > one.half_width(0.95) for one in null_doubts(seeds, noise, key=2)]
    assert np.mean(half) < 0.4


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_power_is_that_of_a_t_test_where_only_seeds_matter(seeds):
    size = TTestPower().solve_power(nobs=seeds, alpha=0.05, power=0.8) * math.sqrt(seeds)
    assert MeanEstimate(0, seeds, 1000, 1.0, 0.0, 0.0).detectable(0.95) == pytest.approx(size, rel=1e-3)


def is_equivalent(one, margin):
    return one.p_value_within(margin) < 0.05


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_margin_that_is_called_detectable_is_shown_four_times_of_five(noise):
    margin = root_mean_square(one.detectable_margin(0.95) for one in null_doubts(5, noise, key=1))
    shown = np.mean([is_equivalent(one, margin) for one in islice(null_doubts(5, noise, key=2), 300)])
    assert 0.73 < shown < 0.89


@pytest.mark.parametrize("noise", [(1, 1, 0.3), (1, 0, 0), (0, 1, 0.3)], ids=str)
def test_what_lies_at_the_margin_is_rarely_called_equivalent_or_not_inferior(noise):
    """Type I errors at the edge; a margin twice as wide would be found out."""
    draws = [replace(one, value=one.value - 4.0) for one in islice(null_doubts(5, noise, key=3), 400)]
    for p_value in (lambda one: one.p_value_within(4.0), lambda one: one.p_value_above(-4.0)):
        assert np.mean([p_value(one) < 0.05 for one in draws]) <= 0.05 + 3 * math.sqrt(0.05 / 400)
    assert np.mean([is_equivalent(one, 8.0) for one in draws]) > 0.3


def test_no_difference_on_any_example_resolves_what_their_number_lets_it():
    same = MeanEstimate(0.0, 3, 240, 0.0, 0.0, 0.0)
    assert same.detectable(0.95) == pytest.approx(1 - 0.05 ** (1 / 240))
    assert same.p_value(same.detectable(0.95)) == pytest.approx(0.05)


def test_mean_of_one_estimate_is_itself_and_of_equal_ones_is_surer():
    one = MeanEstimate(0.1, 5, 900, 0.02, 0.01, 0.012)
    assert mean_estimate([one]).half_width(0.95) == pytest.approx(one.half_width(0.95))
    four = mean_estimate([one] * 4)
    assert (four.value, four.freedom) == (pytest.approx(0.1), pytest.approx(16))
    assert four.half_width(0.95) < one.half_width(0.95) / 2
