"""A spec that could not be built or could not learn is refused, with the remedy."""

import pytest

from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import SpecError
from rankfold.factors import DenseSpec, DiagonalSpec, LowRankSpec, RelaySpec, SeededSpec, SvdSpec
from tests.support.type_checks import unchecked_types

ROUTER = RouterSpec()
MLP_ROUTER = RouterSpec(scope="mlp")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "r=0 leaves an adapter without entries; give r at least 1"),
        ({"rank": -2}, "r=-2 leaves an adapter without entries"),
        (
            {"rank_up": 0, "core": DenseSpec()},
            "rank_up=0 leaves an adapter without entries; give rank_up at least 1",
        ),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability below 1; give one from 0 up to 1"),
        ({"dropout": -0.1}, "dropout=-0.1 is not a probability"),
        ({"dropout": float("nan")}, "dropout=nan is not a probability"),
        ({"alpha": 0.0}, "alpha=0.0 makes an adapter that changes nothing; give a number that is not 0"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"alpha": 1e300}, r"alpha=1e\+300 cannot be trained: in size it may be 1e-06 to 1000000"),
        ({"alpha": -2e6}, r"alpha=-2000000\.0 cannot be trained"),
        ({"alpha": 1e-30}, "alpha=1e-30 cannot be trained"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"rank": 4, "rank_up": 8}, "up reads rank 8 but down writes rank 4; give both one rank, or a core"),
        (
            {"rank": 4, "rank_up": 8, "core": DiagonalSpec("ones")},
            "a diagonal core cannot join rank 4 to 8; use one rank or a dense core",
        ),
        (
            {"scaling": "alpha_over_rank"},
            r"unknown scaling 'alpha_over_rank'\. Did you mean 'alpha_over_r'\?",
        ),
        ({"dropout_position": "inputs"}, r"unknown dropout position 'inputs'\. Did you mean 'input'\?"),
        (
            {"share_down": "module"},
            r"unknown share scope 'module'\. .*Available: entries, in_features, module_type, none, slice",
        ),
        (
            {"share_up": "in_features"},
            "share_up='in_features' has no meaning: .* use 'module_type', 'slice' or 'entries'",
        ),
        (
            {"core": DenseSpec("zeros")},
            "core and up start at zero, so neither would get a gradient; let one start",
        ),
        ({"down": DenseSpec("zeros")}, "down and up start at zero"),
        ({"core": DiagonalSpec(), "up": RelaySpec(initial="zeros")}, "core and up start at zero"),
        (
            {"down": SeededSpec(), "up": SeededSpec()},
            "every factor is frozen, so there is nothing to train; make one",
        ),
        (
            {"down": SvdSpec(), "up": SvdSpec()},
            "every factor is frozen, so there is nothing to train; make one",
        ),
        (
            {"down": SvdSpec(), "core": LowRankSpec(2), "up": SvdSpec(), "share_down": "module_type"},
            "the svd factor at the down side belongs to one layer and one head; give share_down='none'",
        ),
        (
            {"down": DenseSpec(), "core": LowRankSpec(2), "up": SvdSpec(), "heads": 2, "router": ROUTER},
            "the svd factor at the up side belongs to one layer and one head; give share_up=",
        ),
        ({"heads": 0}, "heads=0 leaves layers without any; give at least 1"),
        ({"heads": (2, 0), "router": ROUTER}, r"heads=\(2, 0\) leaves layers without any"),
        ({"heads": ()}, r"heads=\(\) leaves layers without any"),
        ({"heads": 2}, "heads=2 without a router is one head of a larger rank; give a router"),
        ({"heads": (1, 2)}, r"heads=\(1, 2\) without a router is one head of a larger rank"),
        ({"router": ROUTER}, "a router has nothing to choose from with one head; give more heads, or no"),
        ({"heads": (1, 1), "router": ROUTER}, "a router has nothing to choose from with one head"),
        (
            {"down_per_head": True},
            "down_per_head and heads_in are about several heads; give heads more than 1",
        ),
        ({"heads_in": "mlp"}, "down_per_head and heads_in are about several heads"),
        (
            {"heads": 2, "router": ROUTER, "heads_in": "mlps"},
            r"unknown layers to have several heads 'mlps'\. Did you mean 'mlp'\?",
        ),
        ({"heads": 3, "router": RouterSpec(top_k=4)}, r"top_k=4 is more than the heads there are \(3\)"),
        (
            {"heads": (4, 1, 2), "router": RouterSpec(top_k=3)},
            r"top_k=3 is more than the heads there are \(\(4, 1, 2\)\); give fewer",
        ),
        (
            {"heads": 2, "router": MLP_ROUTER},
            "a router of scope 'mlp' serves MLPs only; give heads_in='mlp'",
        ),
        (
            {"heads": 2, "router": RouterSpec(scope="experts")},
            "a router of scope 'experts' serves MLPs only; give heads_in='mlp'",
        ),
    ],
)
def test_spec_names_the_wrong_value_and_the_remedy(fields, message):
    with unchecked_types(), pytest.raises(SpecError, match=message):
        AdapterSpec(**fields)


@pytest.mark.parametrize(
    ("scaling", "multiplier"),
    [("alpha_over_r", 3.0), ("alpha_over_sqrt_r", 6.0), ("none", 1.0), ("learned", 1.0)],
)
def test_multiplier_follows_from_alpha_and_rank(scaling, multiplier):
    assert AdapterSpec(rank=4, alpha=12.0, scaling=scaling).multiplier == multiplier


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"down": RelaySpec(initial="zeros"), "up": RelaySpec(initial="kaiming")},
        {"core": DenseSpec("zeros"), "up": SeededSpec(), "down": SeededSpec()},
        {"core": DiagonalSpec(), "up": DenseSpec()},
        {"up": RelaySpec(k=3, map="permuted", initial="zeros", std=0.5)},
    ],
    ids=str,
)
def test_random_start_changes_only_the_zero(fields):
    spec = AdapterSpec(**fields)
    started = spec.with_random_start()
    assert spec.starts_at_zero
    assert not started.starts_at_zero
    differing = [name for name in AdapterSpec.__slots__ if getattr(spec, name) != getattr(started, name)]
    assert len(differing) == 1
    [changed] = differing
    assert getattr(spec, changed).starts_at_zero
    kept = {name for name in ("k", "map", "std", "kind") if hasattr(getattr(spec, changed), name)}
    assert all(
        getattr(getattr(spec, changed), name) == getattr(getattr(started, changed), name) for name in kept
    )


def test_random_start_of_a_spec_without_zero_is_itself():
    spec = AdapterSpec(up=DenseSpec())
    assert spec.with_random_start() == spec


def test_zero_moves_to_the_down_factor_for_embeddings_where_it_can():
    assert AdapterSpec().with_zero_down() == AdapterSpec(down=DenseSpec("zeros"), up=DenseSpec("kaiming"))
    for stays in (
        AdapterSpec(down=SeededSpec()),
        AdapterSpec(up=DenseSpec()),
        AdapterSpec(core=DenseSpec("zeros"), up=DenseSpec()),
        AdapterSpec(down=DenseSpec("zeros"), up=DenseSpec()),
    ):
        assert stays.with_zero_down() == stays


def test_up_rank_is_the_rank_unless_it_is_given():
    assert AdapterSpec(rank=3).up_rank == 3
    assert AdapterSpec(rank=3, rank_up=5, core=DenseSpec()).up_rank == 5


def heads_at(spec, block, blocks, *, is_in_mlp=True):
    found = spec.at(block=block, blocks=blocks, is_in_mlp=is_in_mlp)
    assert (found.router is None) == (found.heads == 1)
    return found.heads


@pytest.mark.parametrize(
    ("blocks", "numbers"),
    [
        (4, [2, 4, 6, 8]),
        (8, [2, 2, 4, 4, 6, 6, 8, 8]),
        (32, [2] * 8 + [4] * 8 + [6] * 8 + [8] * 8),
        (6, [2, 2, 4, 6, 6, 8]),
        (1, [2]),
    ],
)
def test_several_numbers_of_heads_are_those_of_equal_parts_of_the_blocks(blocks, numbers):
    spec = AdapterSpec(heads=(2, 4, 6, 8), down_per_head=True, router=ROUTER)
    assert [heads_at(spec, block, blocks) for block in range(blocks)] == numbers
    assert heads_at(spec, None, blocks) == 2, "outside of blocks the first number holds"


def test_where_there_is_one_head_there_is_no_router_and_no_down_factor_a_head():
    spec = AdapterSpec(heads=(1, 3), down_per_head=True, router=ROUTER)
    plain = spec.at(block=0, blocks=2, is_in_mlp=True)
    assert plain == AdapterSpec()
    assert (plain.down_heads, heads_at(spec, 1, 2)) == (1, 3)


def test_layers_outside_of_mlps_are_plain_where_heads_are_in_mlps():
    spec = AdapterSpec(heads=4, heads_in="mlp", down_per_head=True, router=MLP_ROUTER)
    assert spec.at(block=1, blocks=2, is_in_mlp=False) == AdapterSpec()
    assert heads_at(spec, 1, 2) == 4


def test_one_number_of_heads_holds_everywhere():
    assert AdapterSpec().at(block=3, blocks=4, is_in_mlp=True) == AdapterSpec()
    assert {heads_at(AdapterSpec(heads=3, router=ROUTER), block, 5) for block in range(5)} == {3}


@pytest.mark.parametrize(
    ("fields", "most", "down_heads"),
    [({}, 1, 1), ({"heads": 3}, 3, 1), ({"heads": (2, 5, 4), "down_per_head": True}, 5, 5)],
)
def test_most_heads_and_down_heads_are_counted(fields, most, down_heads):
    spec = AdapterSpec(**fields, router=ROUTER if fields else None)
    assert (spec.most_heads, spec.down_heads) == (most, down_heads)


def test_zero_stays_where_the_down_factor_is_taken_from_the_weight():
    spec = AdapterSpec(down=SvdSpec(), up=DenseSpec("zeros"))
    assert spec.with_zero_down() == spec
    nested = AdapterSpec(down=SvdSpec(), core=LowRankSpec(2), up=SvdSpec())
    assert nested.with_zero_down() == nested
    assert nested.with_random_start().core == LowRankSpec(2, "kaiming")
