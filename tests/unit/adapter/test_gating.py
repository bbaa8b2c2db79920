"""The layers of an MLP share one decision of one router, from the first entry to the exit of a pass."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.adapter.gating import (
    ExpertEntryGating,
    ExpertExitGating,
    MlpEntryGating,
    MlpExitGating,
    MlpPass,
    join_experts,
)
from rankfold.adapter.router import RouterSpec
from tests.support.tolerance import assert_close

HEADS, FEATURES, RANK = 4, 5, 2


def router_of(**fields):
    router = RouterSpec(scope="mlp", **fields).build(HEADS, FEATURES)
    router.reset(seed=0, name="mlp.router")
    return router.double()


def code(*batch):
    return torch.ones(*batch, 1, RANK, dtype=torch.float64)


def unread():
    raise AssertionError("a router of an MLP reads no code")


def test_exit_weighs_as_the_entries_did_and_then_forgets():
    mlp = MlpPass(router_of(top_k=2))
    gate, up, down = MlpEntryGating(mlp), MlpEntryGating(mlp), MlpExitGating(mlp)
    x, hidden = torch.randn(3, FEATURES, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    weighed = [gate(x, code(3), unread), up(x.clone(), code(3), unread), down(hidden, code(3), unread)]
    assert torch.equal(weighed[0], weighed[1])
    assert torch.equal(weighed[0], weighed[2])
    with pytest.raises(RuntimeError, match="ran before its first; call the MLP as a whole"):
        down(hidden, code(3), unread)


def test_entry_that_comes_again_begins_a_new_pass():
    """A pass that was broken off, by an error or by checkpointing, leaves nothing to the next."""
    mlp = MlpPass(router_of())
    gate, up = MlpEntryGating(mlp), MlpEntryGating(mlp)
    first, second = torch.randn(2, 3, FEATURES, dtype=torch.float64)
    before = gate(first, code(3), unread)
    after = gate(second, code(3), unread)
    assert not torch.equal(before, after)
    assert torch.equal(up(second, code(3), unread), after)


def test_entries_of_one_thread_decide_nothing_for_another():
    mlp = MlpPass(router_of())
    entry = MlpEntryGating(mlp)
    first, second = torch.randn(2, 3, FEATURES, dtype=torch.float64)
    mine = entry(first, code(3), unread)
    with ThreadPoolExecutor(max_workers=1) as threads:
        theirs = threads.submit(entry, second, code(3), unread).result()
    assert not torch.equal(mine, theirs)
    assert torch.equal(MlpExitGating(mlp)(first, code(3), unread), mine)


def test_copy_of_a_pass_starts_afresh():
    mlp = MlpPass(router_of())
    MlpEntryGating(mlp)(torch.randn(3, FEATURES, dtype=torch.float64), code(3), unread)
    with pytest.raises(RuntimeError, match="ran before its first"):
        copy.deepcopy(mlp).weights()
    assert mlp.weights().shape == (3, HEADS)


@pytest.mark.parametrize("places", [1, 2, HEADS])
def test_experts_part_at_the_entry_and_join_at_the_exit(places):
    mlp = MlpPass(router_of(top_k=places))
    entry, exit_ = ExpertEntryGating(mlp, places), ExpertExitGating(mlp, places)
    x = torch.randn(2, 3, FEATURES, dtype=torch.float64)
    weights = mlp.router(x)
    parted = entry(x, code(2, 3), unread).unflatten(-1, (HEADS, RANK))
    assert parted.shape == (places, 2, 3, HEADS, RANK)
    assert torch.equal(parted.sum(dim=(0, -1)), RANK * (weights > 0).double()), "each chosen expert once"

    hidden = torch.randn(places, 2, 3, 6, dtype=torch.float64)
    place_weights = weights.sort(dim=-1, descending=True).values[..., :places].movedim(-1, 0)
    assert_close(exit_.join(hidden).detach(), (hidden * place_weights[..., None]).sum(dim=0).detach())
    joined = exit_(hidden, code(places, 2, 3), unread).unflatten(-1, (HEADS, RANK))
    assert_close(joined[..., 0].detach(), weights.detach())


def test_experts_that_agree_join_to_what_they_agree_on_bit_for_bit():
    mlp = MlpPass(router_of(top_k=3))
    ExpertEntryGating(mlp, 3)(torch.randn(7, FEATURES, dtype=torch.float64), code(7), unread)
    hidden = torch.randn(7, 6, dtype=torch.float64)
    assert torch.equal(ExpertExitGating(mlp, 3).join(hidden.expand(3, 7, 6)), hidden)


@given(
    experts=st.integers(1, 4), batch=st.sampled_from([(), (3,), (2, 3), (2, 0)]), features=st.integers(1, 4)
)
def test_joined_experts_are_their_weighted_sum_with_its_gradients_and_keep_nothing_else(
    experts, batch, features
):
    def outcome(join):
        generator = torch.Generator().manual_seed(0)
        x, scores = (
            torch.randn(experts, *batch, size, generator=generator, dtype=torch.float64).requires_grad_()
            for size in (features, 1)
        )
        kept = dict[int, int]()

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        weights = scores.softmax(dim=0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            joined = join(x, weights)
        first = torch.autograd.grad((joined**2).sum(), (x, scores), create_graph=True)
        second = torch.autograd.grad(sum((part**2).sum() for part in first), (x, scores))
        return [joined, *first, *second], sum(kept.values()), x.numel() + weights.numel()

    def plain(x, weights):
        return (x * weights).sum(dim=0)

    actual, kept, size = outcome(join_experts)
    for value, expected in zip(actual, outcome(plain)[0], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    assert kept <= size
