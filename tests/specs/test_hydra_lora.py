"""HydraLoRA is Tian et al., 2024, eq. 4 and 5: one down factor, and up factors weighed by the input."""

import pytest
import torch

from rankfold.errors import SpecError
from tests.reference import hydra_lora, lora
from tests.specs import checks
from tests.specs.layers import SIZES, adapted, adapters, sizes
from tests.specs.wide import wide_adapter

LINEAR = pytest.mark.parametrize("kind", ["linear", "conv1d"])


@LINEAR
@pytest.mark.parametrize(("r", "heads"), [(1, 2), (3, 4)])
def test_hydra_lora_equals_the_papers_formula(kind, r, heads):
    def forward(x, W, b, parts):
        A, W_g = parts.trained("down.weight"), parts.trained("router.weight")
        return hydra_lora.forward(x, W, b, A, parts.ups, W_g, alpha=5.0)

    checks.assert_layers_equal_reference(
        "hydra_lora", kind, forward, r=r, heads=heads, alpha=5.0, dropout=0.0
    )


def test_hydra_lora_with_one_head_is_lora():
    def delta(parts):
        return lora.delta(parts.trained("up.weight"), parts.trained("down.weight"), alpha=5.0)

    checks.assert_equals_reference("hydra_lora", "linear", delta, r=3, heads=1, alpha=5.0, dropout=0.0)


@pytest.mark.parametrize(("r", "heads"), [(1, 2), (3, 4)])
def test_hydra_lora_has_the_papers_number_of_parameters_and_a_router_beside_them(r, heads):
    expected = hydra_lora.parameters(sizes(), r, heads) + hydra_lora.router_parameters(sizes(), heads)
    checks.assert_counts(adapted("hydra_lora", r=r, heads=heads), expected)


@LINEAR
def test_hydra_lora_changes_nothing_at_the_start(kind):
    assert checks.largest_change(adapted("hydra_lora", kind, r=2), kind) == 0


def test_hydra_lora_trains_and_saves_factors_and_router(tmp_path):
    checks.assert_trains_exactly(adapted("hydra_lora", r=2), {"down", "up", "router"}, tmp_path)


def test_hydra_lora_moves_only_the_up_factors_in_the_first_step():
    assert checks.roles_with_gradient(adapted("hydra_lora", r=2)) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("hydra_lora"))
def test_hydra_lora_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("hydra_lora", option, value)


def test_hydra_lora_defaults_are_those_it_is_compared_with():
    """EffiLoRA's settings for it; its own script has r = 4, alpha = 32 and the same dropout and heads."""
    adapter = wide_adapter("hydra_lora")
    assert (adapter.down.rows, adapter.scaling, adapter.input_dropout.p) == (16, 2.0, 0.05)
    assert (adapter.router.heads, adapter.router.spec.top_k, adapter.router.bias) == (4, None, None)
    assert adapter.router.spec.balance is None


def test_hydra_lora_starts_as_lora_and_its_router_as_a_linear_layer():
    adapter = wide_adapter("hydra_lora", r=64)
    bound = adapter.down.cols**-0.5
    for matrix in (adapter.down(), adapter.router.weight):
        assert matrix.abs().max() <= bound
        assert checks.spread(matrix) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not adapter.up().any()


def test_hydra_lora_routers_of_different_layers_start_differently():
    weights = [adapter.router.weight for adapter in adapters(adapted("hydra_lora", r=2)).values()]
    same_width = [weight for weight in weights if weight.shape[1] == SIZES["query"][0]]
    assert all(not torch.equal(one, other) for i, one in enumerate(same_width) for other in same_width[:i])


def test_hydra_lora_routes_what_dropout_has_not_touched():
    """The gates of a token are the same whatever dropout does to the input of the down factor."""
    torch.manual_seed(0)
    adapter = wide_adapter("hydra_lora", 16, 8, r=2, dropout=0.5, init_weights=False).train()
    heard = []
    adapter.router.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    x = torch.ones(3, 16)
    adapter(x)
    assert torch.equal(heard[0], x)


@pytest.mark.parametrize("kind", ["embedding", "conv2d"])
def test_hydra_lora_refuses_layers_that_are_not_linear(kind):
    with pytest.raises(SpecError, match=r"'0\.query' is not linear, so no router can weigh heads on it"):
        adapted("hydra_lora", kind, r=2)
