"""Whether an adapter folds, and to which rank, is told from its spec alone."""

import pytest

from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import NotExactError
from rankfold.export.verdict import Exact, Refused, exact_rank, verdict
from rankfold.factors import DenseSpec, DiagonalSpec, LowRankSpec, RelaySpec, SeededSpec
from rankfold.presets import discover

PRESETS = discover()
FOLDABLE = {"lora", "lora_fa", "nora", "relayed_lora", "share_lora", "tlora", "tlora_plus"}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_exact_unless_a_router_weighs_its_heads(name):
    spec = PRESETS[name].spec()
    match verdict(spec):
        case Exact(rank):
            assert name in FOLDABLE
            assert rank <= spec.rank
        case Refused(reason):
            assert name not in FOLDABLE
            assert f"{spec.most_heads} heads" in reason


@pytest.mark.parametrize(
    ("fields", "rank"),
    [
        ({"rank": 6}, 6),
        ({"rank": 6, "down": SeededSpec(), "share_down": "slice", "scaling": "learned"}, 6),
        ({"rank": 6, "down": RelaySpec(2), "up": RelaySpec(2, initial="zeros")}, 6),
        ({"rank": 6, "core": DiagonalSpec(), "up": DenseSpec()}, 6),
        ({"rank": 6, "rank_up": 3, "core": DenseSpec("zeros"), "up": DenseSpec()}, 3),
        ({"rank": 3, "rank_up": 6, "core": DenseSpec("zeros"), "up": DenseSpec()}, 3),
        ({"rank": 6, "core": LowRankSpec(inner=2), "up": DenseSpec()}, 2),
        ({"rank": 6, "core": LowRankSpec(inner=9), "up": DenseSpec()}, 6),
    ],
    ids=str,
)
def test_rank_is_the_thinnest_place_of_the_product(fields, rank):
    assert verdict(AdapterSpec(**fields)) == Exact(rank)


def test_refusal_names_the_layer_and_the_remedy():
    spec = PRESETS["hydra_lora"].spec()
    with pytest.raises(
        NotExactError, match=r"cannot fold 'layer\.query' exactly: its router .* --compress-rank"
    ):
        exact_rank("layer.query", spec)
