"""A batch of relayed factors in the life of a model: checkpointing, autocast, writes, errors, copies."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from rankfold.factors import Relay, RelayBatches
from rankfold.factors import relay_batch as module_under_test
from tests.support.tolerance import assert_close
from tests.unit.factors.relay_chain import Chain, assert_same_step, chain, example_input, hook_up, relays


@pytest.mark.parametrize("reentrant", [True, False])
def test_batch_equals_one_by_one_under_checkpointing(reentrant):
    assert_same_step(chain(batched=True, reentrant=reentrant), chain(batched=False))


@pytest.mark.parametrize("reentrant", [True, False])
def test_batch_equals_one_by_one_when_only_some_regions_are_checkpointed(reentrant):
    class MixedLayers(Chain):
        def region(self, relay, x):
            self.reentrant = (
                reentrant if relay is not self.relays[0] and relay is not self.relays[3] else None
            )
            return super().region(relay, x)

    model = MixedLayers(relays())
    hook_up(model)
    assert_same_step(model, chain(batched=False))


def test_batch_without_gradients_gives_plain_values():
    model, reference = chain(batched=True), chain(batched=False)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert_close(model(example_input()), reference(example_input()))
    assert_same_step(model, reference)


def test_batch_keeps_values_with_and_without_gradients_apart_in_one_pass():
    model = chain(batched=True)

    class Peeking(nn.Module):
        def __init__(self):
            super().__init__()
            self.relays = model.relays

        def forward(self, x):
            with torch.no_grad():
                self.relays[0]()
            return sum((relay() ** 2).sum() for relay in self.relays) * x.sum()

    peeking = Peeking()
    hook_up(peeking)
    peeking(example_input()).backward()
    assert all(parameter.grad is not None for parameter in peeking.parameters())


def test_batch_multiplies_in_float32_under_autocast_to_bfloat16():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batched = relays(dtype=torch.float32)
        batches = RelayBatches(batched)
        batches.begin(nn.Identity(), ())
        matrices = [relay() for relay in batched]
    for matrix, alone in zip(matrices, relays(dtype=torch.float32), strict=True):
        assert matrix.dtype == torch.float32
        assert_close(matrix.detach(), alone().detach(), dtype=torch.float32)
    sum(matrix.square().sum() for matrix in matrices).backward()
    for relay, alone in zip(batched, relays(dtype=torch.float32), strict=True):
        alone().square().sum().backward()
        assert_close(relay.left.grad, alone.left.grad, dtype=torch.float32)


def test_batch_of_bfloat16_factors_multiplies_in_float32(monkeypatch):
    dtypes = set()
    original = torch.bmm

    def record_calls(lefts, rights):
        dtypes.update((lefts.dtype, rights.dtype))
        return original(lefts, rights)

    monkeypatch.setattr(module_under_test.torch, "bmm", record_calls)
    batched = relays([(24, 24, 16, "strided")], torch.bfloat16)
    RelayBatches(batched)
    exact = (batched[0].left.float() @ batched[0].right.float()).detach().flatten()
    matrix = batched[0]().detach()
    assert matrix.dtype == torch.bfloat16
    assert set(matrix.flatten().tolist()) <= set(exact.to(torch.bfloat16).tolist())
    batched[0]().sum().backward()
    assert dtypes == {torch.float32}
    assert batched[0].left.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("write", ["step", "data"])
def test_batch_sees_every_write_to_its_parameters(write):
    model, reference = chain(batched=True), chain(batched=False)
    optimisers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, reference)]
    for _ in range(3):
        assert_same_step(model, reference)
        for each, optimiser in zip((model, reference), optimisers, strict=True):
            if write == "step":
                optimiser.step()
            else:
                for parameter in each.parameters():
                    parameter.data = parameter.data - 0.1 * parameter.grad
                    parameter.data.mul_(0.9)
            optimiser.zero_grad()


def test_batch_sees_a_write_between_passes_without_a_gradient():
    model = chain(batched=True).requires_grad_(requires_grad=False)
    before = model(example_input())
    for relay in model.relays:
        relay.left.data.mul_(2)
    assert not torch.equal(model(example_input()), before)


def test_batch_forgets_its_matrices_after_an_error_in_the_forward():
    model, reference = chain(batched=True), chain(batched=False)
    model.fail = True
    with pytest.raises(RuntimeError, match="on purpose"):
        model(example_input())
    batches = model.relays[0].materialiser
    assert not batches._pass.is_open
    assert not batches._pass.matrices
    model.fail = False
    assert_same_step(model, reference)


def test_batch_starts_anew_after_a_pass_that_was_interrupted():
    """Torch calls no hook after a KeyboardInterrupt, so the next pass has to begin by forgetting."""
    model, reference = chain(batched=True), chain(batched=False)
    model.relays[0].materialiser.begin(model, ())
    model.relays[0]()
    for each in (model, reference):
        for relay in each.relays:
            relay.left.data.mul_(2)
    assert_same_step(model, reference)


def test_pass_of_one_thread_is_not_that_of_another():
    model = chain(batched=True)
    relay, batches = model.relays[0], model.relays[0].materialiser

    def elsewhere():
        alone = relay()
        batches.begin(model, ())
        batched = relay()
        batches.end(model, (), None)
        return alone, batched

    batches.begin(model, ())
    mine = relay()
    with ThreadPoolExecutor(max_workers=1) as threads:
        theirs = threads.submit(elsewhere).result()
    assert relay() is mine, "the other thread ended its own pass only"
    for matrix in theirs:
        assert matrix is not mine
        assert torch.equal(matrix, mine)


def test_batch_accumulates_gradients_over_passes():
    model, reference = chain(batched=True), chain(batched=False)
    for _ in range(2):
        assert_same_step(model, reference)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_batch_copied_in_the_middle_of_a_pass_is_independent_and_works(duplicate):
    model = chain(batched=True)
    batches = model.relays[0].materialiser
    batches.begin(model, ())
    model.relays[0]()
    twin = duplicate(model)
    batches.end(model, (), None)
    inner = twin.relays[0].materialiser
    assert inner is not batches
    assert inner.relays == tuple(twin.relays)
    assert not inner._pass.matrices
    assert not inner._pass.is_open, "a copy is in no pass, whatever its original is doing"
    assert_same_step(twin, model)
    for relay in model.relays:
        relay.left.data.zero_()
    assert twin.relays[0]().any()


def test_changed_parameters_are_seen_even_in_a_pass_that_an_interrupt_left_open():
    relay = Relay(5, 3, k=2, initial="kaiming")
    relay.reset(seed=0, name="layer")
    batches = RelayBatches([relay])
    batches.begin(relay, ())
    before = relay().detach()
    with torch.no_grad():
        relay.left.mul_(2)
    assert torch.equal(relay(), 2 * before)
