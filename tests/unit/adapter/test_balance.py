"""The balance losses are the papers', padding counts for nothing, and using all heads alike is cheapest."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.adapter.balance import (
    BALANCE_KINDS,
    BalanceSpec,
    RouterDecisions,
    llava_mole_loss,
    localized_loss,
    mixtral_loss,
    switch_loss,
)
from rankfold.errors import SpecError
from rankfold.presets import balance
from tests.reference import balance as reference
from tests.support.tolerance import assert_close
from tests.support.type_checks import unchecked_types


@st.composite
def decisions(draw, *, heads=None, batch=None):
    """Decisions of a few routers about samples of different lengths, padding at either end."""
    heads = heads or draw(st.integers(2, 5))
    batch, length = batch or draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shape = (draw(st.integers(1, 3)), batch, length, heads)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    probabilities = torch.softmax(2 * torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
    counts = torch.zeros(batch, length, dtype=torch.float64)
    for row in range(batch):
        kept = draw(st.integers(1, length))
        counts[row] = (torch.arange(length) < kept).double()
        if draw(st.booleans()):
            counts[row] = counts[row].flip(0)
    return RouterDecisions(
        probabilities.requires_grad_(), choices(probabilities, draw(st.integers(1, heads))), counts
    )


def choices(probabilities, top_k):
    indices = probabilities.topk(top_k, dim=-1).indices
    return torch.zeros_like(probabilities).scatter(-1, indices, 1.0).detach()


def types_of(group):
    return torch.arange(len(group.counts)) % 2


LOSSES = {
    "switch": lambda groups: switch_loss(groups),
    "mixtral": lambda groups: mixtral_loss(groups),
    "llava_mole": lambda groups: llava_mole_loss(groups),
    "localized": lambda groups: localized_loss(groups, task_type=types_of(groups[0]), delta=0.2),
}
NAIVE = {
    "switch": lambda p, c, real: reference.switch([(p, c, real)]),
    "mixtral": reference.mixtral,
    "llava_mole": reference.llava_mole,
    "localized": lambda p, c, real: reference.localized(p, real, (torch.arange(len(real)) % 2).tolist(), 0.2),
}
EVERY_KIND = pytest.mark.parametrize("kind", BALANCE_KINDS)


def test_every_kind_is_tested():
    assert set(LOSSES) == set(NAIVE) == set(BALANCE_KINDS)


@EVERY_KIND
@given(group=decisions())
def test_loss_equals_the_papers_formula_in_value_and_gradient(kind, group):
    leaf = group.probabilities.detach().clone().requires_grad_()
    loss, expected = LOSSES[kind]([group]), NAIVE[kind](leaf, group.chosen, group.counts)
    assert_close(loss.detach(), expected.detach())
    loss.backward()
    expected.backward()
    assert_close(group.probabilities.grad, leaf.grad)


@EVERY_KIND
@given(one=decisions(batch=2), other=decisions(batch=2))
def test_losses_of_groups_add_up(kind, one, other):
    both = LOSSES[kind]([one, other])
    assert_close(both.detach(), (LOSSES[kind]([one]) + LOSSES[kind]([other])).detach())


@EVERY_KIND
@given(group=decisions(), seed=st.integers(0, 99))
def test_padding_counts_for_nothing(kind, group, seed):
    """Whatever a router says of padding, value and gradients stay, and padding itself gets no gradient."""
    before = LOSSES[kind]([group])
    before.backward()
    generator = torch.Generator().manual_seed(seed)
    other = torch.softmax(torch.randn(group.probabilities.shape, generator=generator).double(), dim=-1)
    is_real = group.counts[None, :, :, None] > 0
    changed = torch.where(is_real, group.probabilities.detach(), other).requires_grad_()
    chosen = torch.where(is_real, group.chosen, choices(other, int(group.chosen[0, 0, 0].sum())))
    after = LOSSES[kind]([RouterDecisions(changed, chosen, group.counts)])
    after.backward()
    assert_close(after.detach(), before.detach())
    assert torch.equal(changed.grad, group.probabilities.grad)
    assert not changed.grad[~is_real.expand_as(changed)].any()


@EVERY_KIND
@given(group=decisions())
def test_padding_may_be_cut_off(kind, group):
    longer = RouterDecisions(
        torch.cat((group.probabilities, group.probabilities.flip(2)), dim=2),
        torch.cat((group.chosen, group.chosen), dim=2),
        torch.cat((group.counts, torch.zeros_like(group.counts)), dim=1),
    )
    assert_close(LOSSES[kind]([longer]).detach(), LOSSES[kind]([group]).detach())


@given(heads=st.integers(2, 6), data=st.data())
def test_uniform_routing_is_the_minimum_of_switch(heads, data):
    """1 where all heads are used alike; more where tokens agree on a preference, whatever it is."""
    even = torch.full((1, 1, heads, heads), 1 / heads, dtype=torch.float64)
    in_turn = torch.eye(heads, dtype=torch.float64)[None, None]
    ones = torch.ones(1, heads, dtype=torch.float64)
    assert switch_loss([RouterDecisions(even, in_turn, ones)]).item() == pytest.approx(1.0)

    scores = torch.tensor(data.draw(st.lists(st.floats(-3, 3), min_size=heads, max_size=heads)))
    agreed = torch.softmax(scores.double(), dim=-1).expand(1, 1, heads, heads)
    top_k = data.draw(st.integers(1, heads))
    loss = switch_loss([RouterDecisions(agreed, choices(agreed, top_k), ones)]).item()
    assert loss >= 1 - 1e-9
    if top_k < heads and scores.max() - scores.min() > 0.1:
        assert loss > 1


@pytest.mark.parametrize("kind", ["switch", "mixtral", "llava_mole"])
def test_a_step_against_the_gradient_takes_from_the_favourite(kind):
    scores = torch.tensor([1.0, 0.0, 0.0, -1.0], dtype=torch.float64).repeat(1, 2, 3, 1).requires_grad_()
    probabilities = torch.softmax(scores, dim=-1)
    group = RouterDecisions(probabilities, choices(probabilities, 2), torch.ones(2, 3, dtype=torch.float64))
    LOSSES[kind]([group]).backward()
    assert (scores.grad[..., 0] > 0).all()
    assert (scores.grad[..., 3] < 0).all()


def test_localized_loss_wants_the_first_half_for_type_one():
    def loss(first_half):
        share = torch.tensor([[first_half] * 2 + [1 - first_half] * 2], dtype=torch.float64) / 2
        group = RouterDecisions(share[None, None], torch.ones(1, 1, 1, 4).double(), torch.ones(1, 1).double())
        return localized_loss([group], task_type=torch.tensor([1]), delta=0.1).item()

    # q is even where the first half gets 0.9 of what the second gets, since it counts 1.1 and not 0.9 times.
    assert loss(0.45) == pytest.approx(0.0, abs=1e-12)
    assert loss(0.45) < loss(0.5) < loss(0.6)


@EVERY_KIND
def test_coefficient_zero_is_no_loss(kind):
    assert balance(kind, 0.0) is None
    assert balance(kind, 0.5) == BalanceSpec(kind=kind, coefficient=0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "swich"}, r"unknown balance loss 'swich'\. Did you mean 'switch'\?"),
        (
            {"coefficient": 0.0},
            "coefficient=0.0 of the balance loss is not above 0; leave balance out for none",
        ),
        ({"coefficient": float("inf")}, "coefficient=inf"),
        ({"delta": 1.0}, "delta=1.0 of the balance loss is not a share; give one from 0 up to 1"),
    ],
)
def test_balance_names_the_wrong_value_and_the_remedy(fields, message):
    with unchecked_types(), pytest.raises(SpecError, match=message):
        BalanceSpec(**{"kind": "switch", "coefficient": 0.1, **fields})
