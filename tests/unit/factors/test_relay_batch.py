"""Building all relayed factors at once is the same as building each alone, and is done once a pass."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankfold.factors import RELAY_MAPS, RelayBatches
from rankfold.factors import relay_batch as module_under_test
from tests.support.tolerance import assert_close
from tests.unit.factors.relay_chain import (
    SHAPES,
    Chain,
    assert_same_gradients,
    assert_same_step,
    chain,
    example_input,
    hook_up,
    relays,
)


@pytest.fixture
def products(monkeypatch):
    """Count how many squares each batched product makes."""
    sizes = []
    original = torch.bmm

    def count_calls(lefts, rights):
        sizes.append(len(lefts))
        return original(lefts, rights)

    monkeypatch.setattr(module_under_test.torch, "bmm", count_calls)
    return sizes


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 2), st.sampled_from(RELAY_MAPS)),
        min_size=1,
        max_size=6,
    ),
    frozen=st.sets(st.integers(0, 5)),
)
def test_batch_equals_one_by_one_in_value_and_gradient_with_any_of_them_frozen(shapes, frozen):
    alone, batched = relays(shapes), relays(shapes)
    for index in frozen & set(range(len(shapes))):
        alone[index].requires_grad_(requires_grad=False)
        batched[index].requires_grad_(requires_grad=False)
    batches = RelayBatches(batched)
    batches.begin(nn.Identity(), ())
    for one, other in zip(alone, batched, strict=True):
        assert_same_matrix(other(), one())
    batches.end(nn.Identity(), (), None)
    for one, other in zip(alone, batched, strict=True):
        assert_same_gradients(other, one)


def test_batch_gives_each_half_its_gradient_when_the_other_half_is_frozen():
    models = chain(batched=True), chain(batched=False)
    for model in models:
        model.relays[0].left.requires_grad_(requires_grad=False)
        model.relays[2].right.requires_grad_(requires_grad=False)
    assert_same_step(*models)


def test_batch_leaves_factors_that_are_not_used_without_gradient():
    models = chain(batched=True), chain(batched=False)
    for model in models:
        model.relays = model.relays[:2]
    assert_same_step(*models)


def test_factor_outside_a_pass_equals_factor_inside():
    model, reference = chain(batched=True), chain(batched=False)
    for inside, alone in zip(model.relays, reference.relays, strict=True):
        inside().square().sum().backward()
        alone().square().sum().backward()
        assert_close(inside.left.grad, alone.left.grad)
        assert_close(inside.right.grad, alone.right.grad)


def test_batch_is_built_once_a_shape_and_pass(products):
    model = chain(batched=True)
    model(example_input())
    assert products == [4, 1]
    model(example_input())
    assert products == [4, 1, 4, 1]


def test_batch_serves_a_factor_that_several_layers_share_once(products):
    [shared] = relays(SHAPES[:1])
    model = Chain([shared, shared, shared])
    hook_up(model)
    model(example_input()).backward()
    [alone] = relays(SHAPES[:1])
    Chain([alone, alone, alone])(example_input()).backward()
    assert products[0] == 1
    assert len(products) == 3, "one product forward, two backward"
    assert_close(shared.left.grad, alone.left.grad)


def test_batch_builds_factors_of_other_dtypes_apart(products):
    made = [*relays(SHAPES[:1]), *relays(SHAPES[:1], torch.float32)]
    batches = RelayBatches(made)
    batches.begin(nn.Identity(), ())
    assert [relay().dtype for relay in made] == [torch.float64, torch.float32]
    assert products == [1, 1]


def assert_same_matrix(matrix, expected):
    """Check the values, and send the same gradient into both."""
    assert_close(matrix.detach(), expected.detach())
    assert matrix.requires_grad == expected.requires_grad
    if matrix.requires_grad:
        weights = torch.arange(1.0, matrix.numel() + 1, dtype=torch.float64).reshape(matrix.shape)
        (matrix * weights).sum().backward(retain_graph=True)
        (expected * weights).sum().backward()
