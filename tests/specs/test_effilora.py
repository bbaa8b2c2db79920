"""EffiLoRA is Tian et al., 2025, section 3.1: one down factor for each input width, heads in each layer."""

import itertools
import math

import pytest

from rankfold.errors import SpecError
from tests.reference import effilora, hydra_lora
from tests.specs import checks
from tests.specs.layers import KINDS, SIZES, adapted, adapters, sizes
from tests.specs.wide import wide_adapter

ONE_HEAD = {"heads": 1, "alpha": 5.0, "dropout": 0.0}
SEVERAL = {"heads": 4, "alpha": 5.0, "dropout": 0.0}


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("share", ["in_features", "module_type", "none"])
def test_effilora_equals_the_papers_formula(kind, share):
    def forward(x, W, b, parts):
        A, W_g = parts.trained("down.weight"), parts.trained("router.weight").T
        return effilora.forward(x, W, b, A, parts.ups, W_g, alpha=5.0)

    checks.assert_layers_equal_reference("effilora", kind, forward, r=3, share=share, **SEVERAL)


def test_effilora_whose_router_reads_the_input_equals_hydra_loras_formula():
    def forward(x, W, b, parts):
        A, W_g = parts.trained("down.weight"), parts.trained("router.weight")
        return hydra_lora.forward(x, W, b, A, parts.ups, W_g, alpha=5.0)

    checks.assert_layers_equal_reference("effilora", "linear", forward, r=3, router_reads="input", **SEVERAL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", ["in_features", "module_type", "none"])
def test_effilora_with_one_head_equals_the_papers_formula(kind, share):
    def delta(parts):
        return effilora.delta(parts.trained("up.weight"), parts.trained("down.weight"), alpha=5.0)

    checks.assert_equals_reference("effilora", kind, delta, r=3, share=share, **ONE_HEAD)


def test_effilora_slice_with_one_head_equals_the_first_columns_of_one_wide_factor():
    def delta(parts):
        n, _ = parts.sizes
        name = "down.source.weight" if hasattr(parts.adapter.down, "source") else "down.weight"
        return effilora.delta(parts.trained("up.weight"), parts.trained(name)[:, :n], alpha=5.0)

    checks.assert_equals_reference("effilora", "linear", delta, r=3, share="slice", **ONE_HEAD)


def test_effilora_shares_one_down_factor_among_the_layers_of_a_width_and_no_up_factor():
    by_path = adapters(adapted("effilora", r=2))
    for (path, one), (other_path, other) in itertools.combinations(by_path.items(), 2):
        widths = [SIZES[each.rpartition(".")[2]][0] for each in (path, other_path)]
        assert (one.down.weight is other.down.weight) == (widths[0] == widths[1])
        assert one.up.weight is not other.up.weight
        assert one.router.weight is not other.router.weight


@pytest.mark.parametrize(("r", "heads"), [(1, 2), (2, 4), (3, 3)])
def test_effilora_counts_one_down_factor_a_width_and_heads_and_a_small_router_a_layer(r, heads):
    checks.assert_counts(adapted("effilora", r=r, heads=heads), effilora.parameters(sizes(), r, heads))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_effilora_with_one_head_counts_one_down_factor_a_width_and_an_up_factor_a_layer(kind, r):
    checks.assert_counts(adapted("effilora", kind, r=r, heads=1), effilora.parameters(sizes(kind), r))


@pytest.mark.parametrize(("kind", "heads"), [*((kind, 1) for kind in KINDS), ("linear", 4), ("conv1d", 4)])
def test_effilora_changes_nothing_at_the_start(kind, heads):
    assert checks.largest_change(adapted("effilora", kind, r=2, heads=heads), kind) == 0


@pytest.mark.parametrize(("heads", "roles"), [(1, {"down", "up"}), (4, {"down", "up", "router"})])
def test_effilora_trains_and_saves_factors_and_router_and_the_shared_factor_once(heads, roles, tmp_path):
    checks.assert_trains_exactly(adapted("effilora", r=2, heads=heads), roles, tmp_path)


@pytest.mark.parametrize("heads", [1, 4])
def test_effilora_moves_only_the_up_factors_in_the_first_step(heads):
    assert checks.roles_with_gradient(adapted("effilora", r=2, heads=heads)) == {"up.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("effilora"))
def test_effilora_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("effilora", option, value)


def test_effilora_defaults_are_the_papers():
    adapter = wide_adapter("effilora")
    assert (adapter.down.rows, adapter.scaling, adapter.input_dropout.p) == (16, 2.0, 0.05)
    spec = adapter.router.spec
    assert (adapter.router.heads, spec.reads, spec.top_k, spec.bias) == (4, "code", None, False)
    assert spec.balance is None


def test_effilora_starts_as_lora():
    adapter = wide_adapter("effilora", r=64)
    bound = 1 / math.sqrt(adapter.down.cols)
    assert adapter.down().abs().max() <= bound
    assert checks.spread(adapter.down()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert not adapter.up().any()
    assert adapter.router.weight.abs().max() <= 64**-0.5


@pytest.mark.parametrize("kind", ["embedding", "conv2d"])
def test_effilora_refuses_several_heads_on_layers_that_are_not_linear(kind):
    with pytest.raises(SpecError, match="or give it one head"):
        adapted("effilora", kind, r=2)
