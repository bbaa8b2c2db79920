"""A spec refuses what could not be built or could not learn, and says what to do."""

import pytest

from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import SpecError
from rankfold.factors import DenseSpec, DiagonalSpec, RelaySpec, SeededSpec
from tests.support.type_checks import unchecked_types


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
            r"unknown share scope 'module'\. .*Available: in_features, module_type, none, slice",
        ),
        (
            {"share_up": "in_features"},
            "share_up='in_features' has no meaning: .* use 'module_type' or 'slice'",
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
