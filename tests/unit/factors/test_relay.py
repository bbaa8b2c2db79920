"""The relayed factor: the entries that it reads, and the rank that they leave."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from rankfold.factors import RELAY_MAPS, Relay, RelaySpec, rank_cap
from rankfold.factors.relay import positions_in_square, square_side
from tests.reference import relay

CPU = torch.device("cpu")
EVERY_MAP = pytest.mark.parametrize("order", RELAY_MAPS)
SIZE = st.integers(1, 16)


def positions(order, entries):
    found = positions_in_square(order, entries, CPU)
    return list(range(entries)) if found is None else found.tolist()


@given(entries=st.integers(1, 10**7))
@example(entries=1)
@example(entries=2**52 + 1)
def test_square_is_the_smallest_with_enough_entries(entries):
    side = square_side(entries)
    assert (side - 1) ** 2 < entries <= side**2


@EVERY_MAP
@given(entries=st.integers(1, 400))
def test_map_reads_each_entry_of_the_square_at_most_once(order, entries):
    read = positions(order, entries)
    assert len(read) == len(set(read)) == entries
    assert min(read) >= 0
    assert max(read) < square_side(entries) ** 2


@given(entries=st.integers(1, 100))
def test_strided_walks_in_steps_coprime_to_the_square_and_longer_than_its_side(entries):
    side, read = square_side(entries), positions("strided", entries)
    steps = {(b - a) % side**2 for a, b in itertools.pairwise(read)}
    assert len(steps) <= 1
    assert all(math.gcd(step, side**2) == 1 for step in steps)
    assert [divmod(flat, side) for flat in read] == [relay.strided(number, side) for number in range(entries)]


@given(entries=st.integers(1, 200))
def test_row_major_reads_the_first_entries(entries):
    side = square_side(entries)
    assert [divmod(flat, side) for flat in positions("row_major", entries)] == [
        relay.row_major(number, side) for number in range(entries)
    ]


def test_permuted_order_belongs_to_the_size_and_not_to_the_seed():
    matrices = []
    for seed in (0, 1):
        factor = Relay(4, 6, k=2, order="permuted")
        factor.reset(seed=seed, name=str(seed))
        with torch.no_grad():
            factor.left.copy_(torch.arange(10.0).reshape(5, 2))
            factor.right.copy_(torch.arange(10.0).reshape(2, 5))
        matrices.append(factor())
    assert torch.equal(*matrices)


@EVERY_MAP
@given(rows=SIZE, cols=SIZE, k=st.integers(1, 4))
@example(rows=12, cols=6, k=1)  # neither of side and cols divides the other
@example(rows=6, cols=15, k=1)
@example(rows=7, cols=20, k=1)  # fewer rows begin alike than their pieces have ranks
@example(rows=12, cols=32, k=1)
@example(rows=45, cols=80, k=2)
def test_rank_cap_is_the_rank_of_a_factor_in_general_position(order, rows, cols, k):
    factor = Relay(rows, cols, k=k, order=order).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in factor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        measured = torch.linalg.matrix_rank(factor(), rtol=1e-11).item()
    assert rank_cap(RelaySpec(k, order), rows, cols) == measured


@pytest.mark.parametrize("k", [4, 8, 16])
def test_rank_cap_of_the_papers_sweep_is_four_k(k):
    assert rank_cap(RelaySpec(k, "row_major"), 1024, 64) == 4 * k
    assert rank_cap(RelaySpec(k, "row_major"), 64, 1024) == 4 * k
    assert rank_cap(RelaySpec(k, "row_major"), 4096, 64) == min(64, 8 * k)
    assert rank_cap(RelaySpec(1, "row_major"), 768, 64) == 64


@EVERY_MAP
def test_relay_zeroes_its_left_matrix_only(order):
    factor = RelaySpec(3, order, "zeros").build(6, 8)
    factor.reset(seed=0, name="x")
    assert not factor.left.any()
    assert factor.right.all()
    twin = RelaySpec(3, order, "kaiming").build(6, 8)
    twin.reset(seed=0, name="x")
    assert torch.equal(factor.right, twin.right)
