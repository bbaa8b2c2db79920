"""TLoRA is Islam, 2025, eq. 1-3: frozen random sides, a trained core, a trained multiplier a layer."""

import pytest
import torch

from tests.reference import tlora
from tests.specs import checks
from tests.specs.layers import KINDS, adapted, adapters, sizes
from tests.specs.wide import INPUTS, OUTPUTS, wide_adapter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reading", ["recommended", "paper"])
def test_tlora_equals_the_papers_formula(kind, reading):
    def delta(parts):
        sides = parts.frozen("up"), parts.frozen("down")
        return tlora.delta(
            sides[0], parts.trained("core.weight"), sides[1], alpha=parts.trained("scale.value")
        )

    checks.assert_equals_reference("tlora", kind, delta, r=3, reading=reading, dropout=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_tlora_trains_the_core_and_one_number_a_layer(kind, r):
    checks.assert_counts(adapted("tlora", kind, r=r), tlora.parameters(len(sizes(kind)), r))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reading", ["recommended", "paper"])
def test_tlora_changes_nothing_at_the_start(kind, reading):
    assert checks.largest_change(adapted("tlora", kind, r=2, reading=reading), kind) == 0


def test_tlora_trains_and_saves_core_and_multiplier_and_nothing_else(tmp_path):
    checks.assert_trains_exactly(adapted("tlora", r=2), {"core", "scale"}, tmp_path)


def test_tlora_moves_only_the_core_in_the_first_step():
    assert checks.roles_with_gradient(adapted("tlora", r=2)) == {"core.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("tlora"))
def test_tlora_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("tlora", option, value)


def test_tlora_starts_with_the_spread_that_the_papers_code_draws():
    adapter = wide_adapter("tlora", r=64)
    assert checks.spread(adapter.down()) == pytest.approx(tlora.std_of_A(INPUTS, 64), rel=0.01)
    assert checks.spread(adapter.up()) == pytest.approx(tlora.std_of_C(64, OUTPUTS), rel=0.01)
    assert adapter.down().abs().max() > 3 * tlora.std_of_A(INPUTS, 64), "normal, not uniform"
    assert not adapter.core().any()


def test_tlora_multiplier_starts_at_one_and_belongs_to_its_layer():
    scales = [adapter.scale.value for adapter in adapters(adapted("tlora", r=2)).values()]
    assert all(scale.tolist() == [1.0] for scale in scales)
    assert len({id(scale) for scale in scales}) == len(scales)


def test_tlora_paper_drops_half_of_the_output_in_training_only():
    """Dropout of the output zeroes single features; dropout of the input would not zero any."""
    model = adapted("tlora", r=3, reading="paper", init_weights=False)
    checks.randomise(model)
    [adapter, *_] = adapters(model).values()
    x = torch.randn(4000, adapter.geometry.in_features, dtype=torch.float64)
    whole = adapter.eval()(x)
    dropped = adapter.train()(x)
    share_of_zeros = (dropped == 0).double().mean().item()
    assert share_of_zeros == pytest.approx(0.5, abs=0.02)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], 2 * whole[kept])


def test_tlora_recommended_drops_nothing():
    [adapter, *_] = adapters(adapted("tlora", r=3, init_weights=False)).values()
    x = torch.randn(50, adapter.geometry.in_features, dtype=torch.float64)
    assert torch.equal(adapter.train()(x), adapter.eval()(x))
