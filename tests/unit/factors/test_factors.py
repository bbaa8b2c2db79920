"""Laws of every type of factor: its size, its start, its gradient, its copies."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import SpecError
from rankfold.factors import (
    INITIALS,
    RELAY_MAPS,
    Dense,
    DenseSpec,
    DiagonalSpec,
    RelaySpec,
    SeededSpec,
    initial_matrix,
    standard_deviation,
)
from tests.support.type_checks import unchecked_types

SPECS = {
    **{f"dense-{initial}": DenseSpec(initial) for initial in INITIALS},
    **{f"seeded-{initial}": SeededSpec(initial) for initial in INITIALS if initial != "zeros"},
    **{
        f"relay-{order}-{initial}": RelaySpec(2, order, initial)
        for order in RELAY_MAPS
        for initial in INITIALS
    },
}
EVERY_SPEC = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
SIZE = st.integers(1, 9)


def make_factor(spec, rows=4, cols=6, *, seed=0, name="layer.down"):
    factor = spec.build(rows, cols)
    factor.reset(seed=seed, name=name)
    return factor


@EVERY_SPEC
@given(rows=SIZE, cols=SIZE, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_factor_has_its_size_and_counts_its_numbers(spec, rows, cols, dtype):
    factor = make_factor(spec, rows, cols).to(dtype)
    matrix = factor()
    assert matrix.shape == (rows, cols)
    assert matrix.dtype == (torch.float32 if factor.is_frozen else dtype)
    assert torch.isfinite(matrix).all()
    assert sum(parameter.numel() for parameter in factor.parameters()) == spec.parameter_count(rows, cols)


@pytest.mark.parametrize(
    ("initial", "variance"),
    [("kaiming", 1 / (3 * 60)), ("lecun", 1 / 60), ("islam", 1 / (3 * 40)), ("zeros", 0)],
)
def test_variance_of_an_entry_is_that_of_its_initial_value(initial, variance):
    assert standard_deviation(initial, 40, 60) ** 2 == pytest.approx(variance)
    entries = initial_matrix(initial, 40, 60, seed=0, name="x")
    assert entries.square().mean().item() == pytest.approx(variance, rel=0.1)


@EVERY_SPEC
def test_factor_starts_at_zero_exactly_if_its_spec_says_so(spec):
    assert bool(make_factor(spec)().any()) != spec.starts_at_zero


@EVERY_SPEC
def test_factor_depends_on_seed_and_name_and_on_nothing_else(spec):
    one = make_factor(spec)
    torch.manual_seed(1)
    again, of_seed, of_name = make_factor(spec), make_factor(spec, seed=1), make_factor(spec, name="layer.up")
    assert torch.equal(one(), again())
    if not spec.starts_at_zero:
        assert not torch.equal(one(), of_seed())
        assert not torch.equal(one(), of_name())


@EVERY_SPEC
def test_factor_survives_deepcopy_and_pickle(spec):
    factor = make_factor(spec)
    matrix = factor()
    for twin in (copy.deepcopy(factor), pickle.loads(pickle.dumps(factor))):
        assert torch.equal(twin(), matrix)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in factor.parameters()}


@EVERY_SPEC
def test_factor_on_the_meta_device_costs_nothing_and_keeps_its_size(spec):
    with torch.device("meta"):
        factor = make_factor(spec, 10**5, 10**5) if not isinstance(spec, SeededSpec) else make_factor(spec)
    assert all(parameter.is_meta for parameter in factor.parameters())


@EVERY_SPEC
def test_every_trained_tensor_gets_a_gradient(spec):
    factor = make_factor(spec)
    if factor.is_frozen:
        assert not factor().requires_grad
        return
    (factor() * torch.arange(1.0, 25.0).reshape(4, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in factor.parameters())


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (-1, 3)], ids=str)
@EVERY_SPEC
def test_factor_without_entries_is_refused(spec, size):
    with pytest.raises(
        SpecError, match=f"a factor of {size[0]} x {size[1]} has no entries; give both sides at least 1"
    ):
        spec.build(*size)


def test_factor_reports_its_size():
    assert repr(Dense(4, 8)) == "Dense(4 x 8)"
    assert repr(RelaySpec(2).build(4, 8)) == "Relay(4 x 8, k=2, map=strided)"


@given(rank=SIZE)
def test_diagonal_is_a_diagonal_matrix_with_a_gradient_on_the_diagonal(rank):
    factor = DiagonalSpec("ones").build(rank, rank)
    factor.reset(seed=0, name="core")
    assert torch.equal(factor(), torch.eye(rank))
    weights = torch.arange(1.0, rank * rank + 1).reshape(rank, rank)
    (factor() * weights).sum().backward()
    assert torch.equal(factor.weight.grad, weights.diagonal())
    assert DiagonalSpec().parameter_count(rank, rank) == rank
    assert DiagonalSpec().starts_at_zero


def test_diagonal_between_two_ranks_is_refused():
    with pytest.raises(SpecError, match="a diagonal core cannot join rank 4 to 3; give both sides one rank"):
        DiagonalSpec().build(3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseSpec("kaimin"), r"unknown initial value 'kaimin'\. Did you mean 'kaiming'\?"),
        (
            lambda: SeededSpec("gauss"),
            r"unknown initial value 'gauss'\. Available: islam, kaiming, lecun, unit, zeros",
        ),
        (
            lambda: SeededSpec("zeros"),
            "a seeded factor cannot start at 'zeros', since it never changes; choose 'kaiming'",
        ),
        (lambda: RelaySpec(0), "k=0 leaves a relayed factor without entries; give k at least 1"),
        (lambda: RelaySpec(map="stridded"), r"unknown relay map 'stridded'\. Did you mean 'strided'\?"),
        (
            lambda: RelaySpec(std=0.0),
            r"std=0.0 must be positive and finite; leave it out for the variance of 'initial'",
        ),
        (lambda: RelaySpec(std=-1.0), r"std=-1.0 must be positive"),
        (lambda: RelaySpec(std=float("nan")), r"std=nan must be positive"),
        (lambda: RelaySpec(initial="one"), r"unknown initial value 'one'"),
        (
            lambda: DiagonalSpec("kaiming"),
            r"unknown initial value 'kaiming' of a diagonal core\. Available: ones, zeros",
        ),
    ],
)
def test_spec_names_the_wrong_value_and_the_remedy(make, message):
    with unchecked_types(), pytest.raises(SpecError, match=message):
        make()
