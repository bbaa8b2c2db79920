"""MixLoRA is Li et al., 2024, eq. 4-6: an expert is the frozen MLP with its own factors in each layer."""

import pytest
import torch

import rankfold
from tests.reference import mix_lora
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


@STYLE
@pytest.mark.parametrize(("heads", "top_k"), [(4, 2), (3, 3), (2, 2), (5, 3)])
def test_mix_lora_equals_the_papers_formula(style, heads, top_k):
    model = adapted_blocks(
        "mix_lora", style, r=2, heads=heads, top_k=top_k, alpha=5.0, dropout=0.0, init_weights=False
    )

    def reference_outputs(x, parts_of):
        outputs = []
        for block in range(BLOCKS):
            mlp, parts = mlp_of(model, block, parts_of)
            outputs += [
                attention_output(model, block, x, parts_of, 5.0),
                mix_lora.mlp(x, mlp, parts.trained("router.weight"), k=top_k, alpha=5.0),
            ]
        return outputs

    checks.assert_same(model, example_input(), reference_outputs)


def test_mix_lora_is_not_a_mixture_of_each_layers_outputs():
    """Experts have hidden states of their own: weighing at each layer, as LLaVA-MoLE does, is another sum."""
    options = {"r": 2, "heads": 3, "alpha": 5.0, "dropout": 0.0, "init_weights": False}
    mixed = adapted_blocks("mix_lora", top_k=3, **options)
    weighed = adapted_blocks("mole", mode="dense", **options)
    checks.randomise(mixed)
    ours = {path: dict(each.named_parameters()) for path, each in adapters(mixed).items()}
    with torch.no_grad():
        for path, adapter in adapters(weighed).items():
            for name, parameter in adapter.named_parameters():
                parameter.copy_(ours[path][name] if name in ours[path] else torch.zeros_like(parameter))
    x = example_input()
    for index, (one, other) in enumerate(zip(mixed(x), weighed(x), strict=True)):
        assert torch.allclose(one, other) == (index % 2 == 0), "attention alike, MLPs not"


@STYLE
@pytest.mark.parametrize(("r", "heads"), [(1, 2), (3, 4)])
def test_mix_lora_has_the_papers_number_of_parameters(style, r, heads):
    reference_outputs = mix_lora.parameters(**counted_sizes(style), r=r, N=heads)
    checks.assert_counts(adapted_blocks("mix_lora", style, r=r, heads=heads), reference_outputs)


@STYLE
def test_mix_lora_changes_nothing_at_the_start(style):
    model = adapted_blocks("mix_lora", style, r=2)
    assert checks.largest_change(model, x=example_input()) == 0


def test_mix_lora_trains_and_saves_factors_and_routers(tmp_path):
    checks.assert_trains_exactly(adapted_blocks("mix_lora", r=2), {"down", "up", "router"}, tmp_path)


@STYLE
def test_mix_lora_moves_only_the_up_factors_in_the_first_step(style):
    model = adapted_blocks("mix_lora", style, r=2)
    assert checks.roles_with_gradient(model, example_input()) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("mix_lora", heads=(2, 3)))
def test_mix_lora_runs_with_every_value_of_every_option(option, value):
    model = adapted_blocks("mix_lora", init_weights=False, **{"r": 2, option: value})
    checks.assert_can_train(model, example_input())


def test_mix_lora_runs_the_last_base_layer_once_and_not_once_an_expert():
    model = adapted_blocks("mix_lora", r=2)
    shapes = []
    for path in adapters(model):
        if path.endswith("down_proj"):
            layer = model.get_submodule(f"base_model.model.{path}").get_base_layer()
            layer.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    model(example_input())
    assert shapes == [(2, 3, 6)] * BLOCKS


@STYLE
def test_mix_lora_layers_of_an_mlp_agree_on_the_experts_when_inputs_jitter(style):
    """One answer a pass, also where each layer casts the input for itself: a second one would differ."""
    model = adapted_blocks("mix_lora", style, r=2, jitter=0.5, dtype=torch.bfloat16).train()
    for _ in range(2):
        assert times_asked(model, example_input().bfloat16()) == [1] * BLOCKS


def test_mix_lora_defaults_are_the_papers():
    config = rankfold.config("mix_lora")
    assert (config.r, config.alpha, config.dropout, config.heads) == (16, 32.0, 0.05, 8)
    assert (config.heads_in, config.target_modules) == ("mlp", "all-linear")
    spec = config.router
    assert (spec.scope, spec.bias, spec.initial, spec.top_k) == ("experts", False, "normal", 2)
    assert (spec.weights, spec.jitter) == ("renormalized", 0.0)
    assert (spec.balance.kind, spec.balance.coefficient) == ("mixtral", 0.001)


def test_mix_lora_draws_its_router_with_standard_deviation_two_hundredths():
    router = rankfold.config("mix_lora").router.build(64, 256)
    router.reset(seed=0, name="mlp.router")
    assert checks.spread(router.weight) == pytest.approx(0.02, rel=0.02)
