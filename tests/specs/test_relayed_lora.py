"""Relayed LoRA is its paper's section 3, eq. 5-12: thin matrices read from square products of small ones."""

import pytest
import torch

import rankfold
from rankfold.errors import SpecError
from tests.reference import relay
from tests.specs import checks
from tests.specs.layers import KINDS, adapted, adapters, sizes
from tests.specs.wide import INPUTS, wide_adapter

# Squares of layers as small as these save nothing, and may cap the rank; that is not the question here.
pytestmark = pytest.mark.filterwarnings("ignore:(k=|map='row_major'):rankfold.RankfoldWarning")

PAPER = {"reading": "paper"}
MAPS = {"row_major": relay.row_major, "strided": relay.strided}


def relayed_sides(parts, r, position_of):
    n, m = parts.sizes
    A = relay.relayed(parts.trained("up.left"), parts.trained("up.right"), m, r, position_of["up"])
    B = relay.relayed(parts.trained("down.left"), parts.trained("down.right"), r, n, position_of["down"])
    return A, B


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("r", "k"), [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("order", MAPS)
def test_relayed_lora_equals_the_papers_formula(kind, r, k, order):
    def delta(parts):
        A, B = relayed_sides(parts, r, dict.fromkeys(("up", "down"), MAPS[order]))
        return relay.delta(A, B, alpha=5.0)

    checks.assert_equals_reference("relayed_lora", kind, delta, r=r, k=k, alpha=5.0, map=order)


def test_relayed_lora_permuted_equals_the_formula_with_a_fixed_assignment():
    order = {role: assignment(role) for role in ("up", "down")}

    def delta(parts):
        A, B = relayed_sides(parts, 3, {role: order[role][parts.sizes] for role in order})
        return relay.delta(A, B, alpha=5.0)

    checks.assert_equals_reference("relayed_lora", "linear", delta, r=3, k=2, alpha=5.0, map="permuted")


def assignment(role):
    """Read the order off factors whose square holds its own coordinates, by size of the layer."""
    found = {}
    for adapter in adapters(adapted("relayed_lora", r=3, k=2, map="permuted", seed=5)).values():
        factor = getattr(adapter, role)
        with torch.no_grad():
            factor.left.copy_(torch.stack((torch.arange(factor.side), torch.ones(factor.side)), dim=1))
            factor.right.copy_(torch.stack((torch.ones(factor.side), torch.arange(factor.side) / 100)))
        numbers = factor().detach().flatten()
        positions = [(int(number + 1e-6), round(100 * (number.item() % 1))) for number in numbers]
        assert len(set(positions)) == len(positions), "each entry of the square is read at most once"
        found[adapter.geometry.in_features, adapter.geometry.out_features] = (
            lambda number, _, positions=positions: positions[number]
        )
    return found


@pytest.mark.parametrize(
    ("options", "order"), [({}, "strided"), (PAPER, "row_major"), ({"map": "permuted"}, "permuted")]
)
def test_relayed_lora_reads_the_square_as_its_reading_says(options, order):
    for adapter in adapters(adapted("relayed_lora", r=2, k=1, **options)).values():
        assert (adapter.down.order, adapter.up.order) == (order, order)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("r", "k"), [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("options", [{}, PAPER], ids=["recommended", "paper"])
def test_relayed_lora_has_the_papers_number_of_parameters(kind, r, k, options):
    checks.assert_counts(
        adapted("relayed_lora", kind, r=r, k=k, **options), relay.parameters(sizes(kind), r, k)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", ["down", "up"])
@pytest.mark.parametrize("options", [{}, PAPER], ids=["recommended", "paper"])
def test_relayed_lora_changes_nothing_at_the_start(kind, zero, options):
    assert checks.largest_change(adapted("relayed_lora", kind, r=2, k=2, zero=zero, **options), kind) == 0


def test_relayed_lora_trains_and_saves_four_small_matrices_a_layer_and_nothing_else(tmp_path):
    model = adapted("relayed_lora", r=2, k=1)
    assert len(checks.trained(model)) == 4 * len(adapters(model))
    checks.assert_trains_exactly(model, {"down", "up"}, tmp_path)


@pytest.mark.parametrize("zero", ["down", "up"])
def test_relayed_lora_moves_only_the_zeroed_matrix_in_the_first_step(zero):
    """The zero stands in the gradient of its partner, and of both matrices of the other side."""
    assert checks.roles_with_gradient(adapted("relayed_lora", r=2, k=2, zero=zero)) == {f"{zero}.left"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("relayed_lora"))
def test_relayed_lora_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("relayed_lora", option, value)


@pytest.mark.parametrize("k", [4, 16])
@pytest.mark.parametrize("order", ["row_major", "strided", "permuted"])
def test_relayed_lora_starts_with_the_spread_of_loras_random_start(k, order):
    """LoRA draws entries of variance 1/(3 f), f being the inputs of the factor: r for up, n for down."""
    adapter = wide_adapter("relayed_lora", r=64, k=k, map=order, init_weights=False)
    assert checks.spread(adapter.down()) == pytest.approx((3 * INPUTS) ** -0.5, rel=0.1)
    assert checks.spread(adapter.up()) == pytest.approx((3 * 64) ** -0.5, rel=0.1)
    for factor, f in ((adapter.down, INPUTS), (adapter.up, 64)):
        sigma = (1 / (3 * f * k)) ** 0.25
        assert checks.spread(factor.left) == pytest.approx(sigma, rel=0.1)
        assert checks.spread(factor.right) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("zero", ["down", "up"])
def test_relayed_lora_zeroes_the_left_matrix_of_one_side_only(zero):
    adapter = wide_adapter("relayed_lora", r=64, k=4, zero=zero)
    for role in ("down", "up"):
        factor = getattr(adapter, role)
        assert factor.left.any() == (role != zero)
        assert factor.right.all()


def test_relayed_lora_draws_with_the_given_spread():
    adapter = wide_adapter("relayed_lora", r=64, k=4, std=0.3, init_weights=False)
    for factor in (adapter.down, adapter.up):
        assert checks.spread(factor.left) == pytest.approx(0.3, rel=0.1)
        assert checks.spread(factor.right) == pytest.approx(0.3, rel=0.1)


def test_relayed_lora_refuses_another_map_in_the_papers_reading():
    with pytest.raises(SpecError, match="map='strided' is not the paper's reading; leave out"):
        rankfold.config("relayed_lora", map="strided", reading="paper")
