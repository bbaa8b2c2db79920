"""A search finds what meets every condition, and refuses what no adapter of the store has."""

import re

import pytest

from rankfold import AdapterStore, SpecError
from tests.support.stored import make_adapter


def names(records):
    return [record.name for record in records]


@pytest.fixture
def store(tmp_path):
    with AdapterStore(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
def filled(store):
    with store.batch():
        for index in range(12):
            store.put(
                f"a{index:02}",
                make_adapter(index, preset=("tlora", "lora")[index % 2], base=("one", "two")[index % 3 == 0]),
                tags={"customer": "ab"[index % 2], "nth": str(index)},
                metrics={"accuracy": index / 10} if index != 5 else {},
            )
    return store


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, range(12)),
        ({"base": "two"}, (0, 3, 6, 9)),
        ({"method": "tlora"}, (0, 2, 4, 6, 8, 10)),
        ({"tags": {"customer": "b"}, "base": "two"}, (3, 9)),
        ({"where": ["accuracy>=0.4", "accuracy < 0.7"]}, (4, 6)),
        ({"where": ["accuracy=0.3"]}, (3,)),
        ({"where": ["accuracy>2"]}, ()),
        ({"tags": {"customer": "' OR 1 --"}}, ()),
    ],
    ids=str,
)
def test_search_finds_what_meets_every_condition(filled, query, expected):
    assert names(filled.list(**query)) == [f"a{index:02}" for index in expected]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"base": "Two"}, "unknown base 'Two' of the adapters. Did you mean 'two'?"),
        ({"method": "relayed_lora"}, "Available: lora, tlora"),
        ({"tags": {"custmer": "a"}}, "Did you mean 'customer'?"),
        ({"where": ["accuracy>0", "acuracy>=0.9"]}, "Did you mean 'accuracy'?"),
    ],
    ids=str,
)
def test_search_for_what_no_adapter_has_is_refused_at_once(filled, query, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        filled.list(**query)
    for name in names(filled.list()):
        filled.delete(name)
    assert names(filled.list(**query)) == []


@pytest.mark.parametrize(
    "condition", ["", "accuracy", "accuracy>>1", "accuracy>=high", ">=1", "a b>1", "a>1;"]
)
def test_condition_that_is_none_is_refused_at_once(store, condition):
    with pytest.raises(SpecError, match=r"accuracy>=0\.9"):
        store.list(where=[condition])
