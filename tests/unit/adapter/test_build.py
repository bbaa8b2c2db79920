"""The builder: names of frozen factors, starts of trained ones, and the warnings that can be acted on."""

import warnings

import pytest
import torch

from rankfold.adapter.build import Builder, Site
from rankfold.adapter.geometry import Linear
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import RankfoldWarning
from rankfold.factors import DenseSpec, RelaySpec, SeededSpec

PATHS = ["blocks.0.query", "blocks.0.value", "blocks.1.query"]


def build_all(spec, *, name="default", paths=PATHS, size=(7, 5)):
    builder = Builder({path: Site(Linear(*size), spec) for path in paths}, name=name)
    return {path: builder.build(path) for path in paths}, builder


def test_builder_gives_frozen_factors_the_path_and_not_the_adapters_name():
    spec = AdapterSpec(rank=2, down=SeededSpec())
    first, _ = build_all(spec, name="one")
    second, _ = build_all(spec, name="two", paths=PATHS[::-1])
    matrices = [first[path].adapter.down() for path in PATHS]
    assert all(torch.equal(first[path].adapter.down(), second[path].adapter.down()) for path in PATHS)
    assert not torch.equal(matrices[0], matrices[1])
    assert not torch.equal(matrices[0], matrices[2])


def test_builder_starts_trained_factors_by_path_name_and_seed():
    def downs(name, seed, paths=PATHS):
        return build_all(AdapterSpec(rank=2, seed=seed), name=name, paths=paths)[0]

    base, again = downs("one", 0), downs("one", 0, PATHS[::-1])
    for path in PATHS:
        start = base[path].adapter.down()
        assert torch.equal(start, again[path].adapter.down())
        assert not torch.equal(start, downs("two", 0)[path].adapter.down())
        assert not torch.equal(start, downs("one", 1)[path].adapter.down())
    assert not torch.equal(base[PATHS[0]].adapter.down(), base[PATHS[1]].adapter.down())


@pytest.mark.parametrize(
    "spec", [AdapterSpec(rank=2), AdapterSpec(rank=2, core=DenseSpec(), up=DenseSpec("zeros"))]
)
def test_builder_draws_down_core_and_up_independently(spec):
    built, _ = build_all(spec.with_random_start(), size=(7, 7))
    adapter = built[PATHS[0]].adapter
    drawn = [
        factor().flatten()[:4] for factor in (adapter.down, adapter.core, adapter.up) if factor is not None
    ]
    ratios = [(a / a.norm() - b / b.norm()).norm() for i, a in enumerate(drawn) for b in drawn[:i]]
    assert min(ratios) > 1e-3


def test_builder_lets_one_layer_own_each_shared_factor():
    built, _ = build_all(AdapterSpec(rank=2, share_down="module_type"))
    assert ["down" in built[path].owned_parts for path in PATHS] == [True, True, False]
    assert built[PATHS[2]].adapter.down is built[PATHS[0]].owned_parts["down"]
    assert all("up" in each.owned_parts for each in built.values())


def test_builder_batches_relayed_factors_only():
    assert build_all(AdapterSpec(rank=2))[1].relay_batches() is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankfoldWarning)
        built, builder = build_all(AdapterSpec(rank=2, up=RelaySpec(1), down=RelaySpec(1, initial="zeros")))
    batches = builder.relay_batches()
    assert len(batches.relays) == 2 * len(PATHS)
    assert all(each.adapter.down.materialiser is batches for each in built.values())


@pytest.mark.parametrize("rank", [6, 7, 8, 20])
def test_rank_above_a_size_warns(rank):
    with pytest.warns(RankfoldWarning, match=rf"r={rank} is more than the rank of '.*' can be \(5\)"):
        build_all(AdapterSpec(rank=rank))


def test_rank_up_to_the_smaller_size_is_fine():
    build_all(AdapterSpec(rank=5))


@pytest.mark.parametrize(("k", "warns"), [(15, False), (16, True)])
def test_relay_warns_from_the_k_that_saves_nothing(k, warns):
    """2 k d parameters for rows x cols = d d entries: half of d is where they are as many."""
    spec = AdapterSpec(rank=8, up=RelaySpec(k), down=DenseSpec("zeros"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_all(spec, size=(128, 128))
    messages = {str(warning.message) for warning in caught}
    assert len(messages) == warns
    assert all(
        "k=16 saves nothing on the up factor (128 x 8): it trains 1024 parameters for 1024" in each
        for each in messages
    )


def test_relay_warns_once_a_size_where_its_map_caps_the_rank():
    spec = AdapterSpec(rank=16, up=RelaySpec(1, "row_major"), down=DenseSpec("zeros"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_all(spec, size=(256, 256))
    [warning] = caught
    expected = (
        "map='row_major' with k=1 caps the rank of the up factor (256 x 16) at 4; map='strided' does not"
    )
    assert expected in str(warning.message)
