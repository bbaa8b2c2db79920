"""EffiLoRA with one head: LoRA with one down factor for each input width (Tian et al., 2025, section 3.1)."""

import itertools
import math

import pytest

from tests.reference import effilora
from tests.specs import checks
from tests.specs.layers import KINDS, SIZES, adapted, adapters, sizes
from tests.specs.wide import wide_adapter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", ["in_features", "module_type", "none"])
def test_effilora_equals_the_papers_formula(kind, share):
    def delta(parts):
        return effilora.delta(parts.trained("up.weight"), parts.trained("down.weight"), alpha=5.0)

    checks.assert_equals_reference("effilora", kind, delta, r=3, alpha=5.0, dropout=0.0, share=share)


def test_effilora_slice_equals_the_first_columns_of_one_wide_factor():
    def delta(parts):
        n, _ = parts.sizes
        name = "down.source.weight" if hasattr(parts.adapter.down, "source") else "down.weight"
        return effilora.delta(parts.trained("up.weight"), parts.trained(name)[:, :n], alpha=5.0)

    checks.assert_equals_reference("effilora", "linear", delta, r=3, alpha=5.0, dropout=0.0, share="slice")


def test_effilora_shares_one_down_factor_among_the_layers_of_a_width_and_no_up_factor():
    by_path = adapters(adapted("effilora", r=2))
    for (path, one), (other_path, other) in itertools.combinations(by_path.items(), 2):
        widths = [SIZES[each.rpartition(".")[2]][0] for each in (path, other_path)]
        assert (one.down.weight is other.down.weight) == (widths[0] == widths[1])
        assert one.up.weight is not other.up.weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_effilora_counts_one_down_factor_a_width_and_an_up_factor_a_layer(kind, r):
    checks.assert_counts(adapted("effilora", kind, r=r), effilora.parameters(sizes(kind), r))


@pytest.mark.parametrize("kind", KINDS)
def test_effilora_changes_nothing_at_the_start(kind):
    assert checks.largest_change(adapted("effilora", kind, r=2), kind) == 0


def test_effilora_trains_and_saves_both_factors_and_the_shared_one_once(tmp_path):
    checks.assert_trains_exactly(adapted("effilora", r=2), {"down", "up"}, tmp_path)


def test_effilora_moves_only_the_up_factors_in_the_first_step():
    assert checks.roles_with_gradient(adapted("effilora", r=2)) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("effilora"))
def test_effilora_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("effilora", option, value)


def test_effilora_defaults_are_the_papers():
    adapter = wide_adapter("effilora")
    assert (adapter.down.rows, adapter.scaling, adapter.input_dropout.p) == (16, 2.0, 0.05)


def test_effilora_starts_as_lora():
    adapter = wide_adapter("effilora", r=64)
    bound = 1 / math.sqrt(adapter.down.cols)
    assert adapter.down().abs().max() <= bound
    assert checks.spread(adapter.down()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert not adapter.up().any()
