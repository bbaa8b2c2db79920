"""The factor that is taken from the base weight: its leading singular vectors, the same every time."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import SpecError
from rankfold.factors import SPLITS, Decomposition, SvdSpec, svd
from tests.support.tolerance import assert_close
from tests.support.type_checks import unchecked_types

SIZE = st.integers(1, 9)


def weight_of(rows, cols, *, decay=0.5, seed=0, dtype=torch.float64):
    """A weight whose singular values fall as a power of their index, as those of trained weights do."""
    generator = torch.Generator().manual_seed(seed)
    least = min(rows, cols)
    left, right = (
        torch.linalg.qr(torch.randn(side, least, generator=generator, dtype=torch.float64)).Q
        for side in (rows, cols)
    )
    values = torch.arange(1, least + 1, dtype=torch.float64) ** -decay
    return ((left * values) @ right.T).to(dtype)


def take_from(weight, rank, split="up"):
    """Both factors of a weight."""
    decomposition = Decomposition(weight, rank)
    factors = SvdSpec(split).build(weight.shape[0], rank), SvdSpec(split).build(rank, weight.shape[1])
    for factor, side in zip(factors, ("up", "down"), strict=True):
        factor.take(decomposition.side(side, split))
    return factors


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (80, 80)], ids=str)
@pytest.mark.parametrize("decay", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_decomposition_equals_torchs_for_the_leading_part(shape, decay, rank):
    weight = weight_of(*shape, decay=decay)
    decomposition = Decomposition(weight, rank)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    signs = (decomposition.right * right[:rank]).sum(dim=1).sign()
    assert_close(decomposition.values, values[:rank])
    assert_close(decomposition.right, right[:rank] * signs[:, None])
    assert_close(decomposition.left, left[:, :rank] * signs)


@given(rows=SIZE, cols=SIZE, data=st.data())
def test_decomposition_is_orthonormal_sorted_and_the_best_of_its_rank(rows, cols, data):
    rank = data.draw(st.integers(1, min(rows, cols)))
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    found = Decomposition(weight, rank)
    identity = torch.eye(rank, dtype=torch.float64)
    assert_close(found.left.T @ found.left, identity)
    assert_close(found.right @ found.right.T, identity)
    assert (found.values.diff() <= 0).all()
    rest = torch.linalg.svdvals(weight)[rank:]
    error = (weight - (found.left * found.values) @ found.right).norm()
    assert error.item() == pytest.approx(rest.norm().item(), abs=1e-9)


def test_decomposition_of_a_large_weight_keeps_as_much_as_the_exact_one(monkeypatch):
    """Beyond the exact sizes single vectors may differ, the remainder of the weight may not."""
    monkeypatch.setattr(svd, "EXACT_UP_TO", 0)
    for shape, decay in (((160, 120), 0.2), ((120, 160), 0.5), ((120, 120), 1.0)):
        weight = weight_of(*shape, decay=decay)
        for rank in (4, 32):
            found = Decomposition(weight, rank)
            error = (weight - (found.left * found.values) @ found.right).norm()
            assert error <= 1.002 * torch.linalg.svdvals(weight)[rank:].norm()
            assert_close(found.left.T @ found.left, torch.eye(rank, dtype=torch.float64))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decomposition_is_the_same_every_time(exact, dtype, monkeypatch):
    if not exact:
        monkeypatch.setattr(svd, "EXACT_UP_TO", 0)
    weight = weight_of(96, 64, dtype=dtype)
    one = take_from(weight, 8)
    torch.manual_seed(1)
    torch.randn(3)
    for again in (take_from(weight, 8), take_from(weight.clone().requires_grad_(), 8)):
        assert all(torch.equal(a(), b()) for a, b in zip(one, again, strict=True))


@given(rows=SIZE, cols=SIZE)
def test_largest_entry_of_each_right_vector_is_positive(rows, cols):
    generator = torch.Generator().manual_seed(10 * rows + cols)
    weight = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    for matrix in (weight, -weight):
        right = Decomposition(matrix, min(rows, cols)).right
        assert (right.gather(1, right.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("split", SPLITS)
def test_sides_multiply_to_the_leading_part_whichever_has_the_values(split):
    weight = weight_of(12, 9)
    up, down = take_from(weight, 4, split)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    assert_close((up() @ down()).double(), (left[:, :4] * values[:4]) @ right[:4], dtype=torch.float32)
    norms = {"up": (values[:4], torch.ones(4)), "even": (values[:4].sqrt(), values[:4].sqrt())}[split]
    assert_close(up().norm(dim=0), norms[0].float())
    assert_close(down().norm(dim=1), norms[1].float())


def test_weight_without_rank_gives_zeros_and_not_an_error():
    up, down = take_from(torch.zeros(5, 4), 2)
    assert not up().any()
    assert_close(down() @ down().T, torch.eye(2))


def test_svd_factor_trains_and_stores_nothing():
    factor, _ = take_from(weight_of(6, 5), 3)
    assert factor.is_frozen
    assert not factor.state_dict()
    assert SvdSpec().parameter_count(6, 3) == 0
    assert not SvdSpec().starts_at_zero
    before = factor()
    factor.reset(seed=3, name="another")
    assert torch.equal(factor(), before)


def test_svd_factor_stays_float32_in_every_dtype_and_survives_copies():
    factor, _ = take_from(weight_of(6, 5), 3)
    before = factor().clone()
    assert before.dtype == torch.float32
    for twin in (
        copy.deepcopy(factor),
        pickle.loads(pickle.dumps(factor)),
        factor.to(torch.bfloat16),
        factor.double(),
    ):
        assert twin().dtype == torch.float32
        assert torch.equal(twin(), before)


def test_svd_factor_moves_with_its_module():
    factor, _ = take_from(weight_of(6, 5), 3)
    assert torch.nn.Sequential(factor).to("meta")[0]().is_meta


def test_svd_factor_of_a_base_without_weights_says_so_when_it_is_read():
    with pytest.raises(
        SpecError, match="has no values: it is taken from the base weight, and there was none; load all of"
    ):
        SvdSpec().build(6, 3)()


def test_decomposition_refuses_more_vectors_than_there_are():
    with pytest.raises(
        SpecError, match="r=6 is more than the 5 singular vectors of a weight of 7 x 5; give r at most 5"
    ):
        Decomposition(torch.ones(7, 5), 6)


def test_svd_spec_names_the_wrong_value_and_the_remedy():
    with unchecked_types(), pytest.raises(SpecError, match=r"unknown split 'evn' of singular values"):
        SvdSpec("evn")
    with pytest.raises(SpecError, match="a factor of 0 x 3 has no entries"):
        SvdSpec().build(0, 3)
