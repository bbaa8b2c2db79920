"""The core that is a product of two thin trained matrices."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import SpecError
from rankfold.factors import INITIALS, LowRankSpec, standard_deviation
from tests.reference.products import product
from tests.support.type_checks import unchecked_types

SIZE = st.integers(1, 9)


def make_factor(spec, rows=6, cols=5, *, seed=0, name="layer.core"):
    factor = spec.build(rows, cols)
    factor.reset(seed=seed, name=name)
    return factor


@given(
    rows=SIZE, cols=SIZE, inner=SIZE, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
)
def test_low_rank_is_the_product_of_what_it_trains(rows, cols, inner, dtype):
    spec = LowRankSpec(inner, "kaiming")
    factor = make_factor(spec, rows, cols).to(dtype)
    assert factor().shape == (rows, cols)
    assert factor().dtype == dtype
    # Sums of rounded products cancel, so the bound is relative to the sizes of what is summed.
    left, right = factor.left.detach().double(), factor.right.detach().double()
    error = (factor().detach().double() - product(left, right)).abs()
    assert bool((error <= 4 * torch.finfo(dtype).eps * product(left.abs(), right.abs())).all())
    assert sum(each.numel() for each in factor.parameters()) == spec.parameter_count(rows, cols)
    assert torch.linalg.matrix_rank(factor.double()()) <= inner


@pytest.mark.parametrize("initial", INITIALS)
def test_low_rank_starts_at_zero_exactly_if_its_spec_says_so(initial):
    spec = LowRankSpec(3, initial)
    factor = make_factor(spec, 64, 48)
    assert bool(factor().any()) != spec.starts_at_zero
    assert factor.left.std().item() == pytest.approx(standard_deviation(initial, 64, 3), rel=0.15)
    assert factor.right.std().item() == pytest.approx(standard_deviation("kaiming", 3, 48), rel=0.15)


def test_low_rank_that_starts_at_zero_has_a_way_out():
    factor = make_factor(LowRankSpec(3))
    factor().sum().backward()
    assert factor.left.grad.any()
    assert not factor.right.grad.any()


def test_low_rank_starts_by_seed_and_name_and_draws_its_matrices_apart():
    spec = LowRankSpec(4, "kaiming")
    one = make_factor(spec, 4, 4)
    assert torch.equal(one(), make_factor(spec, 4, 4)())
    assert not torch.equal(one(), make_factor(spec, 4, 4, seed=1)())
    assert not torch.equal(one(), make_factor(spec, 4, 4, name="other.core")())
    assert not torch.equal(one.left, one.right)


def test_low_rank_survives_a_copy_and_costs_nothing_on_the_meta_device():
    factor = make_factor(LowRankSpec(2, "kaiming"))
    twin = copy.deepcopy(factor)
    assert torch.equal(twin(), factor())
    assert twin.left is not factor.left
    with torch.device("meta"):
        assert all(each.is_meta for each in make_factor(LowRankSpec(2), 10**5, 10**5).parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankSpec(0), "inner=0 leaves a factor without entries; give inner at least 1"),
        (lambda: LowRankSpec(2, "zero"), r"unknown initial value 'zero'\. Did you mean 'zeros'\?"),
        (lambda: LowRankSpec().build(0, 2), "a factor of 0 x 2 has no entries"),
    ],
)
def test_low_rank_names_the_wrong_value_and_the_remedy(make, message):
    with unchecked_types(), pytest.raises(SpecError, match=message):
        make()
