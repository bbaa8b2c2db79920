"""Whether an adapter folds, and to which rank, follows from its spec alone."""

import pytest

from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import NotExactError
from rankfold.export.fold import exact_rank, folding_obstacle
from rankfold.factors import BasisSpec, DenseSpec, DiagonalSpec, LowRankSpec, RelaySpec, SeededSpec
from rankfold.presets import discover

PRESETS = discover()
BASIS = BasisSpec("ab" * 16, "mine", 8)
FOLDABLE = {"basis_core", "lora", "lora_fa", "nora", "relayed_lora", "share_lora", "tlora", "tlora_plus"}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_exact_unless_a_router_weighs_its_heads(name):
    spec = PRESETS[name].spec()
    obstacle = folding_obstacle(spec)
    assert (obstacle is None) == (name in FOLDABLE)
    if obstacle is None:
        assert exact_rank(spec) <= spec.rank
    else:
        assert f"{spec.most_heads} heads" in obstacle


@pytest.mark.parametrize(
    ("fields", "rank"),
    [
        ({"rank": 6}, 6),
        ({"rank": 6, "down": SeededSpec(), "share_down": "slice", "scaling": "learned"}, 6),
        ({"rank": 6, "down": RelaySpec(2), "up": RelaySpec(2, initial="zeros")}, 6),
        ({"rank": 6, "down": BASIS, "core": DenseSpec("zeros"), "up": BASIS}, 6),
        ({"rank": 6, "core": DiagonalSpec(), "up": DenseSpec()}, 6),
        ({"rank": 6, "rank_up": 3, "core": DenseSpec("zeros"), "up": DenseSpec()}, 3),
        ({"rank": 3, "rank_up": 6, "core": DenseSpec("zeros"), "up": DenseSpec()}, 3),
        ({"rank": 6, "core": LowRankSpec(inner=2), "up": DenseSpec()}, 2),
        ({"rank": 6, "core": LowRankSpec(inner=9), "up": DenseSpec()}, 6),
    ],
    ids=str,
)
def test_rank_is_the_thinnest_factor_of_the_product(fields, rank):
    assert exact_rank(AdapterSpec(**fields)) == rank


def test_refusal_names_the_layer_and_the_remedy():
    spec = PRESETS["hydra_lora"].spec()
    with pytest.raises(
        NotExactError, match=r"cannot fold 'layer\.query' exactly: its router .* --compress-rank"
    ):
        exact_rank(spec, "layer.query")
