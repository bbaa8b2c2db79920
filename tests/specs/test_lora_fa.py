"""LoRA-FA is LoRA whose down factor stays at its random start (Zhang et al., 2023, section 3.1)."""

import math

import pytest

from tests.reference import lora_fa
from tests.specs import checks
from tests.specs.layers import KINDS, adapted, adapters, sizes
from tests.specs.wide import wide_adapter


@pytest.mark.parametrize("kind", KINDS)
def test_lora_fa_equals_the_papers_formula(kind):
    def delta(parts):
        return lora_fa.delta(parts.trained("up.weight"), parts.frozen("down"), alpha=5.0)

    checks.assert_equals_reference("lora_fa", kind, delta, r=3, alpha=5.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_lora_fa_has_the_up_factors_parameters_only(kind, r):
    checks.assert_counts(adapted("lora_fa", kind, r=r), lora_fa.parameters(sizes(kind), r))


@pytest.mark.parametrize("kind", KINDS)
def test_lora_fa_changes_nothing_at_the_start(kind):
    assert checks.largest_change(adapted("lora_fa", kind, r=2), kind) == 0


def test_lora_fa_trains_and_saves_the_up_factor_and_nothing_else(tmp_path):
    checks.assert_trains_exactly(adapted("lora_fa", r=2), {"up"}, tmp_path)


def test_lora_fa_moves_the_up_factor_in_the_first_step():
    assert checks.roles_with_gradient(adapted("lora_fa", r=2)) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("lora_fa"))
def test_lora_fa_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("lora_fa", option, value)


def test_lora_fa_freezes_each_layer_at_a_start_of_its_own():
    frozen = [adapter.down().flatten()[:8].tolist() for adapter in adapters(adapted("lora_fa", r=2)).values()]
    assert len({tuple(start) for start in frozen}) == len(frozen)


def test_lora_fa_freezes_loras_start():
    down = wide_adapter("lora_fa", r=64).down()
    bound = 1 / math.sqrt(down.shape[1])
    assert down.abs().max() <= bound
    assert checks.spread(down) == pytest.approx(bound / math.sqrt(3), rel=0.01)
