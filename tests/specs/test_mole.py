"""LLaVA-MoLE is Chen et al., 2024: LoRA in attention, and in an MLP experts that are chosen once for it."""

from itertools import product

import pytest
import torch

import rankfold
from rankfold.train.auxiliary import auxiliary_loss
from tests.reference import mole
from tests.specs import checks
from tests.specs.blocks import (
    BLOCKS,
    STYLES,
    adapted_blocks,
    attention_output,
    counted_sizes,
    mlp_of,
    times_asked,
)
from tests.specs.layers import adapters, example_input

STYLE = pytest.mark.parametrize("style", STYLES)
OPTIONS = {"r": 2, "alpha": 5.0, "dropout": 0.0}


def reference(model, mode, weights, alpha=5.0):
    def expected_outputs(x, parts_of):
        outputs = []
        for block in range(BLOCKS):
            mlp, parts = mlp_of(model, block, parts_of)
            W_g, b_g = parts.trained("router.weight"), parts.trained("router.bias")
            outputs += [
                attention_output(model, block, x, parts_of, alpha),
                mole.mlp(x, mlp, W_g, b_g, mode=mode, weights=weights, alpha=alpha),
            ]
        return outputs

    return expected_outputs


@STYLE
@pytest.mark.parametrize(
    ("mode", "weights"), [("top1", "probability"), ("top1", "straight_through"), ("dense", "renormalized")]
)
def test_mole_equals_the_papers_formula(style, mode, weights):
    model = adapted_blocks("mole", style, mode=mode, weights=weights, init_weights=False, **OPTIONS)
    checks.assert_same(model, example_input(), reference(model, mode, weights))


@STYLE
def test_mole_top_1_adds_the_best_expert_with_weight_one(style):
    """The paper's training: values are those of the formula, and the task does not reach the router."""
    model = adapted_blocks("mole", style, init_weights=False, **OPTIONS)
    checks.randomise(model)
    leaves = {id(tensor): tensor for tensor in checks.trained(model).values()}
    x = example_input()
    outputs = model(x)
    expected_outputs = reference(model, "top1", "renormalized")(
        x, lambda adapter: checks.Parts(adapter, leaves)
    )
    for actual, wanted in zip(outputs, expected_outputs, strict=True):
        checks.assert_close(actual, wanted)


@STYLE
def test_mole_top_1_trains_its_router_by_the_balance_loss_alone(style):
    model = adapted_blocks("mole", style, init_weights=False, **OPTIONS)
    routers = {each.router for each in adapters(model).values() if each.router is not None}
    checks.weighted_sum(model.train()(example_input())).backward(retain_graph=True)
    largest = max(tensor.grad.abs().max() for tensor in checks.trained(model).values())
    assert all(each.weight.grad.abs().max() < 1e-12 * largest for each in routers)

    model.zero_grad()
    auxiliary_loss(model).backward()
    assert all(each.weight.grad.abs().max() > 1e-6 for each in routers)
    assert all(each.up.weight.grad is None for each in adapters(model).values())


@STYLE
@pytest.mark.parametrize(("r", "heads"), [(1, 2), (3, 3)])
def test_mole_has_the_papers_number_of_parameters(style, r, heads):
    expected_outputs = mole.parameters(**counted_sizes(style), r=r, N=heads)
    checks.assert_counts(adapted_blocks("mole", style, r=r, heads=heads), expected_outputs)


@STYLE
def test_mole_gives_each_mlp_one_router_and_attention_none(style):
    by_path = adapters(adapted_blocks("mole", style, r=2))
    for (path, one), (other_path, other) in product(by_path.items(), by_path.items()):
        in_attention = "attn" in path or "attention" in path
        assert (one.router is None) == in_attention
        same_block = path.split(".")[1] == other_path.split(".")[1]
        if not in_attention and other.router is not None:
            assert (one.router is other.router) == same_block


@STYLE
def test_mole_asks_its_router_once_in_a_pass(style):
    """All layers of an MLP take one answer, also where each has its own copy of the input."""
    model = adapted_blocks("mole", style, r=2, dtype=torch.bfloat16)
    for _ in range(2):
        assert times_asked(model, example_input().bfloat16()) == [1] * BLOCKS


@STYLE
@pytest.mark.parametrize("mode", ["top1", "dense"])
def test_mole_changes_nothing_at_the_start(style, mode):
    assert checks.largest_change(adapted_blocks("mole", style, r=2, mode=mode), x=example_input()) == 0


def test_mole_trains_and_saves_factors_and_routers(tmp_path):
    checks.assert_trains_exactly(adapted_blocks("mole", r=2), {"down", "up", "router"}, tmp_path)


@STYLE
def test_mole_moves_only_the_up_factors_in_the_first_step(style):
    model = adapted_blocks("mole", style, r=2, mode="dense")
    assert checks.roles_with_gradient(model, example_input()) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("mole", heads=(2, 3)))
def test_mole_runs_with_every_value_of_every_option(option, value):
    model = adapted_blocks("mole", init_weights=False, **{"r": 2, option: value})
    checks.assert_can_train(model, example_input())


def test_mole_defaults_are_the_papers():
    config = rankfold.config("mole")
    assert (config.r, config.alpha, config.dropout, config.heads) == (32, 64.0, 0.05, 3)
    assert (config.heads_in, config.target_modules) == ("mlp", "all-linear")
    spec = config.router
    assert (spec.scope, spec.reads, spec.bias, spec.top_k) == ("mlp", "input", True, 1)
    assert (spec.weights, spec.balance.kind, spec.balance.coefficient) == ("renormalized", "llava_mole", 0.05)


def test_mole_starts_each_expert_as_lora_and_the_bias_of_its_router_at_zero():
    for adapter in adapters(adapted_blocks("mole", r=2)).values():
        assert adapter.down().abs().max() <= adapter.down.cols**-0.5
        assert not adapter.up().any()
        if adapter.router is not None:
            assert adapter.router.weight.any()
            assert not torch.any(adapter.router.bias)
