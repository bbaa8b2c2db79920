"""Folding is algebra: the product of the two matrices is the adapter's change, at the promised rank."""

import pytest
import torch

from rankfold.adapter.build import Builder
from rankfold.adapter.geometry import Linear
from rankfold.adapter.site import Site
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import NotExactError
from rankfold.export.fold import exact_rank, fold, relative_error, unfolded_update
from rankfold.factors import DenseSpec, DiagonalSpec, LowRankSpec, RelaySpec, SeededSpec
from rankfold.presets import discover
from tests.support.tolerance import assert_close

SPECS = {
    "plain": {},
    "relayed": {"down": RelaySpec(3), "up": RelaySpec(3, map="permuted")},
    "seeded": {"down": SeededSpec(), "scaling": "learned"},
    "diagonal": {"core": DiagonalSpec("ones"), "scaling": "alpha_over_sqrt_r"},
    "narrow_up": {"core": DenseSpec("lecun"), "rank_up": 2},
    "wide_up": {"core": DenseSpec("lecun"), "rank_up": 9},
    "nested": {"core": LowRankSpec(inner=2, initial="kaiming")},
}


def adapter_of(fields):
    spec = AdapterSpec(**{"rank": 5, "alpha": 3.0, "up": DenseSpec(), **fields})
    adapter = Builder({"layer": Site(Linear(24, 18), spec)}, name="default").build("layer").adapter.double()
    adapter.strength = 0.7
    if adapter.scale is not None:
        torch.nn.init.constant_(adapter.scale.value, -1.3)
    return spec, adapter


@pytest.mark.parametrize("name", SPECS)
def test_folded_product_is_the_change_at_the_promised_rank(name):
    spec, adapter = adapter_of(SPECS[name])
    folded = fold(adapter)
    assert exact_rank(spec) == folded.rank
    assert_close(folded.matrix(), adapter.delta_weight())
    assert relative_error(folded, unfolded_update(adapter)) < 1e-14


@pytest.mark.parametrize("name", SPECS)
def test_relative_error_is_that_of_the_weights(name):
    _, adapter = adapter_of(SPECS[name])
    folded, expected = fold(adapter), unfolded_update(adapter)
    rounded = folded.to(torch.bfloat16)
    dense = (rounded.matrix() - expected.matrix()).norm() / expected.matrix().norm()
    assert relative_error(rounded, expected) == pytest.approx(dense.item(), rel=1e-9)


def test_error_of_nothing_is_none_and_of_something_against_nothing_is_infinite():
    _, adapter = adapter_of({})
    folded = fold(adapter)
    nothing = folded.to(torch.float64)
    nothing.up.zero_()
    assert relative_error(nothing, nothing) == 0
    assert relative_error(fold(adapter), nothing) == float("inf")


def test_adapter_with_a_router_is_refused():
    spec = discover()["hydra_lora"].spec()
    adapter = Builder({"layer": Site(Linear(24, 18), spec)}, name="default").build("layer").adapter
    with pytest.raises(NotExactError, match="gates depend on the input"):
        fold(adapter)
