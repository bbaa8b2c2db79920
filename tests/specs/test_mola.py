"""MoLA is Gao et al., 2024, section 3: experts with both factors, more in higher blocks, two for a token."""

import pytest

from rankfold.errors import SpecError
from tests.reference import mola
from tests.specs import checks
from tests.specs.layers import SIZES, TARGETS, adapted, adapters, example_input
from tests.specs.wide import wide_adapter

BLOCK = [SIZES[target] for target in TARGETS]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("heads", "top_k"), [((2, 4), 2), ((4, 3), 2), (4, 3)])
def test_mola_equals_the_papers_formula(kind, heads, top_k):
    def forward(x, W, b, parts):
        W_g = parts.trained("router.weight")
        return mola.forward(x, W, b, parts.downs, parts.ups, W_g, k=top_k, alpha=5.0)

    checks.assert_layers_equal_reference(
        "mola", kind, forward, r=2, heads=heads, top_k=top_k, alpha=5.0, dropout=0.0
    )


@pytest.mark.parametrize(("r", "heads"), [(1, (2, 3)), (3, (4, 2))])
def test_mola_has_the_papers_number_of_parameters(r, heads):
    checks.assert_counts(adapted("mola", r=r, heads=heads), mola.parameters([BLOCK, BLOCK], r, heads))


def test_mola_gives_each_block_its_number_of_experts():
    for path, adapter in adapters(adapted("mola", r=2, heads=(2, 3))).items():
        heads = 3 if path.startswith("blocks.1.") else 2
        assert (adapter.router.heads, adapter.down_heads, adapter.up.cols) == (heads, heads, 2 * heads)


def test_mola_gives_plain_lora_to_blocks_with_one_expert():
    for path, adapter in adapters(adapted("mola", r=2, heads=(1, 3))).items():
        assert (adapter.router is None) == path.startswith("blocks.0.")


def test_mola_changes_nothing_at_the_start():
    assert checks.largest_change(adapted("mola", r=2)) == 0


def test_mola_with_one_expert_a_token_adds_it_with_weight_one():
    """Its probability divided by itself: the task says nothing to the router then."""
    model = adapted("mola", r=2, heads=3, top_k=1, dropout=0.0, init_weights=False)
    checks.weighted_sum(model(example_input())).backward()
    for adapter in adapters(model).values():
        assert adapter.router.weight.grad.abs().max() < 1e-12 * adapter.up.weight.grad.abs().max()


def test_mola_trains_and_saves_factors_and_routers(tmp_path):
    checks.assert_trains_exactly(adapted("mola", r=2), {"down", "up", "router"}, tmp_path)


def test_mola_moves_only_the_up_factors_in_the_first_step():
    assert checks.roles_with_gradient(adapted("mola", r=2)) == {"up.weight"}


@pytest.mark.parametrize(
    ("option", "value"), checks.every_value("mola", heads=(2, 3, (2, 3), (3, 2, 4)), top_k=(1, 2))
)
def test_mola_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("mola", option, value)


def test_mola_refuses_to_choose_more_experts_than_some_block_has():
    with pytest.raises(SpecError, match=r"top_k=3 is more than the heads there are \(\(2, 4, 6, 8\)\)"):
        adapted("mola", r=2, top_k=3)


def test_mola_defaults_are_the_papers():
    adapter = wide_adapter("mola")
    assert (adapter.down.rows // 2, adapter.scaling, adapter.input_dropout.p) == (8, 2.0, 0.05)
    spec = adapter.router.spec
    assert (spec.reads, spec.top_k, spec.weights, spec.bias) == ("input", 2, "renormalized", False)
    assert (spec.initial, spec.balance) == ("kaiming", None)


def test_mola_starts_each_expert_as_lora():
    adapter = wide_adapter("mola", r=64, heads=3)
    for down in adapter.down().chunk(3):
        assert checks.spread(down) == pytest.approx((3 * adapter.down.cols) ** -0.5, rel=0.01)
    assert not adapter.up().any()
