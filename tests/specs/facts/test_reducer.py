"""The Reducer's rule is IST's: its update, its draws, and that it finds the layers that matter."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.train.reducer.scores import (
    importance_by_loss_delta,
    importance_by_reward,
    least_important,
    log_sigmoid,
    sample_layers,
    sample_sets,
    uniform_numbers,
)
from tests.reference import ist

LAYERS, IMPORTANT, ROUNDS, SEEDS = 8, 4, 60, 100
COST, NOISE = 0.3, 0.02


def loss_without(suppressed, important, generator):
    """Return the loss of a model that only misses its important layers, measured with noise."""
    return 0.5 + COST * len(important & set(suppressed)) + generator.gauss(0, NOISE)


def learn(seed, rule):
    """Return importance after rounds of probes, and the layers that were important."""
    generator = random.Random(seed)
    important = set(generator.sample(range(LAYERS), IMPORTANT))
    importance = (0.0,) * LAYERS
    for _ in range(ROUNDS):
        importance = rule(importance, important, generator)
    return importance, important


def ist_rule(importance, important, generator):
    def chances(_attempt):
        return [generator.random() or 0.5 for _ in range(LAYERS)]

    sets = sample_sets(importance, LAYERS // 2, 3, chances)
    losses = [loss_without(layers, important, generator) for layers in sets]
    return importance_by_reward(importance, sets, losses, 10.0)


def literal_rule(importance, important, generator):
    """Suppress the least important half, and add its cost: EffiLoRA's text, word for word."""
    layers = least_important(importance, LAYERS // 2)
    loss = loss_without(layers, important, generator)
    return importance_by_loss_delta(importance, [layers], [loss], 0.5, 10.0)


def finds(seed, rule):
    importance, important = learn(seed, rule)
    return set(least_important(importance, LAYERS - IMPORTANT)).isdisjoint(important)


def test_the_rule_of_ist_finds_the_important_layers_for_nearly_every_seed():
    assert sum(finds(seed, ist_rule) for seed in range(SEEDS)) >= 0.95 * SEEDS


def test_the_literal_rule_of_the_text_does_not_rank_layers():
    assert sum(finds(seed, literal_rule) for seed in range(SEEDS)) <= 0.25 * SEEDS
    importance, important = learn(0, literal_rule)
    means = [
        sum(value for layer, value in enumerate(importance) if (layer in important) is wanted) / IMPORTANT
        for wanted in (True, False)
    ]
    assert means[0] == pytest.approx(means[1], rel=0.02)


@given(
    scores=st.lists(st.floats(-9, 9), min_size=2, max_size=9),
    probes=st.integers(2, 4),
    rate=st.floats(0.1, 20),
    data=st.data(),
)
def test_update_is_that_of_ist_with_the_sign_turned(scores, probes, rate, data):
    layers = range(len(scores))
    sets = [data.draw(st.sets(st.sampled_from(layers), min_size=1)) for _ in range(probes)]
    losses = [data.draw(st.floats(0, 5)) for _ in range(probes)]
    mine = importance_by_reward(
        tuple(-score for score in scores), [tuple(sorted(s)) for s in sets], losses, rate
    )
    theirs = ist.update(torch.tensor(scores, dtype=torch.float64), [sorted(s) for s in sets], losses, rate)
    assert mine == pytest.approx([-value for value in theirs.tolist()], rel=1e-10, abs=1e-12)


def test_layers_are_drawn_as_often_as_ist_draws_them():
    importance, count, draws = (2.0, 0.0, -1.0, -3.0), 2, 4000
    dispensable = -torch.tensor(importance, dtype=torch.float64)
    generator = random.Random(1)
    mine = Counter(
        sample_layers(importance, count, [generator.random() or 0.5 for _ in importance])
        for _ in range(draws)
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = Counter(tuple(sorted(ist.active_layers(dispensable, count))) for _ in range(draws))
    assert mine.keys() <= theirs.keys() | {(2, 3)}
    for layers, number in theirs.items():
        # Five standard deviations of the difference of two such counts.
        assert abs(mine[layers] - number) < 5 * (2 * max(number, 10)) ** 0.5


@given(scores=st.lists(st.floats(-2000, 2000), min_size=2, max_size=9), data=st.data())
def test_a_draw_has_different_layers_for_scores_of_any_size(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    drawn = sample_layers(scores, count, uniform_numbers(len(scores), seed=0, name="draw"))
    assert len(set(drawn)) == count
    assert list(drawn) == sorted(drawn)
    assert all(log_sigmoid(score) <= 0 for score in scores)


@pytest.mark.parametrize(("layers", "count", "possible"), [(2, 1, 2), (3, 2, 3), (4, 2, 3)])
def test_suppressed_sets_differ_and_the_search_ends_when_there_are_no_more(layers, count, possible):
    sets = sample_sets(
        (0.0,) * layers, count, 3, lambda attempt: uniform_numbers(layers, seed=0, name=f"{attempt}")
    )
    assert len(sets) == len(set(sets)) == possible


def test_the_search_for_sets_ends_when_others_are_hardly_likely():
    importance = (900.0, 900.0, -900.0, -900.0)
    sets = sample_sets(importance, 2, 3, lambda attempt: uniform_numbers(4, seed=0, name=f"{attempt}"))
    assert sets == [(2, 3)]


def test_important_layers_are_suppressed_seldom_and_trained_often():
    importance = (3.0, -3.0, 3.0, -3.0)
    chances = [uniform_numbers(4, seed=0, name=f"{index}") for index in range(200)]
    trained = Counter(layer for each in chances for layer in sample_layers(importance, 2, each))
    suppressed = Counter(sample_sets(importance, 2, 1, lambda _, each=each: each)[0] for each in chances)
    assert min(trained[0], trained[2]) > 2 * max(trained[1], trained[3])
    assert suppressed[(1, 3)] > 150


def test_draws_depend_on_seed_and_name_alone():
    state = torch.random.get_rng_state()
    first = uniform_numbers(5, seed=3, name="reducer/active/7")
    torch.rand(3)
    assert uniform_numbers(5, seed=3, name="reducer/active/7") == first
    assert uniform_numbers(5, seed=4, name="reducer/active/7") != first
    assert uniform_numbers(5, seed=3, name="reducer/active/8") != first
    assert all(0 < value < 1 for value in first)
    torch.random.set_rng_state(state)
