"""The order in which replicas are asked for an adapter."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

ray_app = pytest.importorskip("rankfold.serve.ray_app", reason="Ray Serve is not installed")


def order(name, replicas):
    """The names of the replicas in the order in which they are asked."""
    router = object.__new__(ray_app.HashRouter)
    candidates = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=replica)) for replica in replicas]
    request = SimpleNamespace(metadata=SimpleNamespace(multiplexed_model_id=name))
    ranks = asyncio.run(router.choose_replicas(candidates, request))
    return [[replica.replica_id.unique_id for replica in rank] for rank in ranks]


@given(st.text(min_size=1), st.sets(st.text(), min_size=2, max_size=8), st.data())
def test_a_replica_that_goes_moves_no_other(name, replicas, data):
    whole = order(name, sorted(replicas))
    assert order(name, sorted(replicas, reverse=True)) == whole
    gone = data.draw(st.sampled_from(sorted(replicas)))
    assert order(name, replicas - {gone}) == [rank for rank in whole if rank != [gone]]


def test_adapters_are_spread_over_replicas():
    replicas = [f"replica{index}" for index in range(4)]
    firsts = Counter(order(f"adapter{index}", replicas)[0][0] for index in range(2000))
    assert all(count == pytest.approx(500, rel=0.2) for count in firsts.values())
    assert len(firsts) == len(replicas)


def test_requests_without_an_adapter_may_go_to_any_replica_first():
    replicas = [f"replica{index}" for index in range(4)]
    orders = [order("", replicas) for _ in range(200)]
    assert {tuple(sorted(rank)) for ranks in orders for rank in ranks} == {tuple(replicas)}
    assert {ranks[0][0] for ranks in orders} == set(replicas)
