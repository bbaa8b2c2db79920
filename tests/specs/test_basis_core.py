"""Core on a basis is Compress then Serve, 2025, eq. 1: r x r trained numbers a layer between shared sides."""

import pytest
import torch

from tests.reference import basis_core
from tests.specs import checks
from tests.specs.layers import KINDS, TARGETS, Layers, adapted, adapters, sizes
from tests.specs.wide import INPUTS, OUTPUTS, wide_adapter
from tests.support.bases import random_basis


@pytest.fixture
def file_of(tmp_path):
    """Write a basis of rank 6 for the small model of a kind, and return the name of its file."""
    return lambda kind: str(
        tmp_path / f"{random_basis(tmp_path / f'{kind}.basis', Layers(kind), list(TARGETS), 6).name}.basis"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("is_learned", [True, False])
def test_basis_core_equals_its_formula(kind, r, is_learned, file_of):
    def delta(parts):
        return basis_core.delta(
            parts.frozen("up"), parts.trained("core.weight"), parts.frozen("down"), alpha=5.0
        )

    basis = file_of(kind) if is_learned else None
    checks.assert_equals_reference("basis_core", kind, delta, r=r, alpha=5.0, basis=basis)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 3])
def test_basis_core_has_the_first_directions_of_its_layers(kind, r, file_of, tmp_path):
    basis = random_basis(tmp_path / "same.basis", Layers(kind), list(TARGETS), 6)
    for path, adapter in adapters(adapted("basis_core", kind, r=r, basis=file_of(kind))).items():
        assert torch.equal(adapter.down(), basis.side(path, "down")[:r])
        assert torch.equal(adapter.up(), basis.side(path, "up")[:, :r])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_basis_core_trains_its_core_alone(kind, r, tmp_path):
    model = adapted("basis_core", kind, r=r)
    checks.assert_counts(model, basis_core.parameters(len(sizes(kind)), r))
    checks.assert_trains_exactly(model, {"core"}, tmp_path)
    assert checks.largest_change(model, kind) == 0


def test_basis_core_moves_its_core_in_the_first_step():
    assert checks.roles_with_gradient(adapted("basis_core", r=2)) == {"core.weight"}


@pytest.mark.parametrize(("option", "value"), checks.every_value("basis_core", basis=[None]))
def test_basis_core_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("basis_core", option, value)


def test_seeded_directions_have_length_one_like_learned_ones():
    adapter = wide_adapter("basis_core", r=64)
    assert adapter.down().norm(dim=1).mean() == pytest.approx(1, rel=0.02), INPUTS
    assert adapter.up().norm(dim=0).mean() == pytest.approx(1, rel=0.02), OUTPUTS
