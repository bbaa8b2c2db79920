"""LoRA is Hu et al., 2022, eq. 3, started as in PEFT."""

import math

import pytest
import torch

from tests.reference import lora
from tests.specs import checks
from tests.specs.layers import KINDS, adapted, adapters, sizes
from tests.specs.wide import wide_adapter
from tests.support.tolerance import assert_close

FORMULAS = {
    "alpha_over_r": lora.delta,
    "alpha_over_sqrt_r": lora.rank_stabilised_delta,
    "none": lambda B, A, alpha: lora.delta(B, A, alpha=A.shape[0]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", FORMULAS)
def test_lora_equals_the_papers_formula(kind, scaling):
    def delta(parts):
        return FORMULAS[scaling](parts.trained("up.weight"), parts.trained("down.weight"), 5.0)

    alpha = {} if scaling == "none" else {"alpha": 5.0}
    checks.assert_equals_reference("lora", kind, delta, r=3, scaling=scaling, **alpha)


def test_lora_with_learned_scaling_has_one_trained_multiplier_a_layer():
    def delta(parts):
        up, down, scale = (parts.trained(name) for name in ("up.weight", "down.weight", "scale.value"))
        return scale * lora.delta(up, down, alpha=3)

    checks.assert_equals_reference("lora", "linear", delta, r=3, scaling="learned")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_lora_has_the_papers_number_of_parameters(kind, r):
    checks.assert_counts(adapted("lora", kind, r=r), lora.parameters(sizes(kind), r))


@pytest.mark.parametrize("kind", KINDS)
def test_lora_changes_nothing_at_the_start(kind):
    assert checks.largest_change(adapted("lora", kind, r=2), kind) == 0
    assert checks.largest_change(adapted("lora", kind, r=2, init_weights=False), kind) > 0


def test_lora_trains_and_saves_both_factors_and_nothing_else(tmp_path):
    checks.assert_trains_exactly(adapted("lora", r=2), {"down", "up"}, tmp_path)


def test_lora_moves_only_the_up_factor_in_the_first_step():
    assert checks.roles_with_gradient(adapted("lora", r=2)) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("lora"))
def test_lora_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("lora", option, value)


def test_lora_starts_uniform_with_variance_one_third_of_the_inverse_width():
    down = wide_adapter("lora", r=64).down()
    bound = 1 / math.sqrt(down.shape[1])
    assert down.abs().max() <= bound
    assert down.abs().max() > 0.999 * bound
    assert checks.spread(down) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert abs(down.mean()) < 0.01 * bound


def test_lora_embedding_starts_with_zero_down_and_random_up():
    for adapter in adapters(adapted("lora", "embedding", r=2)).values():
        assert not adapter.down().any()
        assert adapter.up().all()


def test_lora_scales_by_alpha_over_r_of_the_layer_where_patterns_differ():
    model = adapted(
        "lora", r=2, alpha=8.0, rank_pattern={"value": 1}, alpha_pattern={"value": 3.0}, init_weights=False
    )
    for path, adapter in adapters(model).items():
        alpha = 3.0 if path.endswith("value") else 8.0
        expected = lora.delta(adapter.up().detach(), adapter.down().detach(), alpha)
        assert_close(adapter.delta_weight().detach(), expected)
        assert adapter.down.rows == (1 if path.endswith("value") else 2)
        assert adapter.down().dtype == torch.float64
