"""A small model of relayed factors, batched or not, and the comparison of a training step of two of them."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rankfold.factors import Relay, RelayBatches
from tests.support.tolerance import assert_close

# Of one shape of square: 4 x 6 and 5 x 5 (side 5) in two maps, and 3 x 8; of another: 2 x 3 and k = 1.
SHAPES = [
    (4, 6, 2, "strided"),
    (5, 5, 2, "row_major"),
    (3, 8, 2, "permuted"),
    (4, 6, 2, "strided"),
    (2, 3, 1, "strided"),
]


class Chain(nn.Module):
    """x -> sum of |factor| of each relayed factor times x's entries, one region after the other."""

    def __init__(self, relays, *, reentrant=None):
        super().__init__()
        self.relays = nn.ModuleList(relays)
        self.reentrant = reentrant
        self.fail = False

    def forward(self, x):
        for relay in self.relays:
            x = self.region(relay, x)
            if self.fail:
                raise RuntimeError("fails on purpose")
        return x.sum()

    def region(self, relay, x):
        def step(x):
            return torch.tanh(relay().flatten()[: len(x)] * x) + x

        return step(x) if self.reentrant is None else checkpoint(step, x, use_reentrant=self.reentrant)


def relays(shapes=SHAPES, dtype=torch.float64):
    made = []
    for index, (rows, cols, k, order) in enumerate(shapes):
        relay = Relay(rows, cols, k=k, order=order)
        relay.reset(seed=0, name=str(index))
        made.append(relay.to(dtype))
    return made


def chain(*, batched, shapes=SHAPES, dtype=torch.float64, reentrant=None):
    model = Chain(relays(shapes, dtype), reentrant=reentrant)
    if batched:
        hook_up(model)
    return model


def hook_up(model):
    batches = RelayBatches(dict.fromkeys(model.relays))
    model.register_forward_pre_hook(batches.begin)
    model.register_forward_hook(batches.end, always_call=True)
    return batches


def example_input(dtype=torch.float64):
    return torch.linspace(0.5, 1.5, 6, dtype=dtype, requires_grad=True)


def assert_same_step(one, two):
    """Check value and all gradients of one forward and backward pass of two models."""
    first, second = (example_input() for _ in range(2))
    values = one(first), two(second)
    assert_close(values[0].detach(), values[1].detach())
    for value in values:
        value.backward()
    assert_close(first.grad, second.grad, what="gradient of the input")
    assert_same_gradients(one, two)


def assert_same_gradients(one, two):
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert_close(a.grad, b.grad, what=f"gradient of {name}")
