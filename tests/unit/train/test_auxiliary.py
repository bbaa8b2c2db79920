"""Balance losses of a whole model: collected once, padding left out, whatever shapes its layers read."""

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rankfold import RankfoldConfig
from rankfold.adapter.balance import (
    BALANCE_KINDS,
    BalanceSpec,
    RouterDecisions,
    llava_mole_loss,
    localized_loss,
    mixtral_loss,
    switch_loss,
)
from rankfold.adapter.module import adapters_in
from rankfold.adapter.router import RouterSpec
from rankfold.errors import SpecError
from rankfold.train.auxiliary import auxiliary_loss, has_auxiliary_loss
from tests.specs.blocks import BLOCKS, adapted_blocks
from tests.specs.layers import Layers
from tests.support.tolerance import assert_close

SAMPLES, TOKENS, WIDTH = 2, 3, 7
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
TYPES = torch.tensor([1, 0])
EVERY_KIND = pytest.mark.parametrize("kind", BALANCE_KINDS)


class Chain(nn.Module):
    """A layer that reads all tokens, flattened or not, and a pooler that reads the first of each sample."""

    def __init__(self, *, flattens=False, pools=True, checkpoints=None):
        super().__init__()
        self.checkpoints = checkpoints
        self.encoder, self.pooler = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.flattens, self.pools = flattens, pools

    def forward(self, x):
        if self.checkpoints is None or not self.training:
            return self.run(x)
        return checkpoint(self.run, x, use_reentrant=self.checkpoints == "reentrant")

    def run(self, x):
        y = self.encoder(x.flatten(0, 1)).reshape(x.shape) if self.flattens else self.encoder(x)
        return self.pooler(y[:, 0]) if self.pools else y


def routed(base, kind, targets, *, heads=4, coefficient=0.5):
    """The base with heads on its layers, two of them chosen for a token, and a balance loss."""
    balance = BalanceSpec(kind=kind, coefficient=coefficient) if kind else None
    router = RouterSpec(top_k=2, balance=balance)
    config = RankfoldConfig(r=2, heads=heads, router=router, target_modules=targets, init_weights=False)
    return peft.get_peft_model(base.double(), config).train()


def layers_model(kind, **options):
    return routed(Layers(), kind, ["query", "value"], **options)


def chain(kind, **options):
    return routed(Chain(**options), kind, ["encoder", "pooler"])


def tokens(*batch):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*(batch or (SAMPLES, TOKENS)), WIDTH, generator=generator, dtype=torch.float64)


def decisions(model):
    """What the routers decided, by layer and not taken away."""
    return {path: each.router.decision for path, _, each in adapters_in(model) if each.router is not None}


def group(found, counts):
    """Decisions side by side, as samples and tokens."""
    shape = (*counts.shape, -1)
    return RouterDecisions(
        torch.stack([each.probabilities.reshape(shape) for each in found]),
        torch.stack([each.chosen.reshape(shape) for each in found]),
        counts.double(),
    )


LOSSES = {
    "switch": switch_loss,
    "mixtral": mixtral_loss,
    "llava_mole": llava_mole_loss,
    "localized": lambda groups: localized_loss(groups, task_type=TYPES, delta=0.1),
}


@EVERY_KIND
@pytest.mark.parametrize(
    "mask", [MASK, MASK.bool(), MASK.double(), None], ids=["int", "bool", "float", "none"]
)
def test_loss_is_that_of_all_routers_times_its_coefficient(kind, mask):
    model = layers_model(kind)
    model(tokens())
    found = decisions(model)
    counts = torch.ones_like(MASK) if mask is None else MASK
    blocks = [[each for path, each in found.items() if f"blocks.{block}." in path] for block in (0, 1)]
    groups = blocks if kind == "switch" else [list(found.values())]
    expected = 0.5 * LOSSES[kind]([group(each, counts) for each in groups])
    assert_close(auxiliary_loss(model, mask, TYPES).detach(), expected.detach())


@EVERY_KIND
def test_loss_is_collected_once(kind):
    model = layers_model(kind)
    model(tokens())
    assert auxiliary_loss(model, MASK, TYPES) > 0
    assert auxiliary_loss(model, MASK, TYPES) == 0
    assert all(decision is None for decision in decisions(model).values())


def test_loss_counts_a_router_that_serves_several_layers_once():
    model = adapted_blocks("mole", r=2).train()
    model(tokens())
    routers = {id(each.router): each.router for _, _, each in adapters_in(model) if each.router is not None}
    assert len(routers) == BLOCKS
    expected = 0.05 * llava_mole_loss([group([each.decision for each in routers.values()], MASK)])
    assert_close(auxiliary_loss(model, MASK).detach(), expected.detach())


@EVERY_KIND
def test_loss_reaches_routers_and_nothing_else(kind):
    model = layers_model(kind)
    model(tokens().requires_grad_(requires_grad=False))
    auxiliary_loss(model, MASK, TYPES).backward()
    for name, parameter in model.named_parameters():
        # The first block's output is not the second's input, so no router hears of another factor.
        assert (parameter.grad is not None) == ("rankfold_router" in name), name


@EVERY_KIND
def test_padding_changes_nothing(kind):
    model, x = layers_model(kind), tokens()
    other = torch.where(MASK[..., None] > 0, x, 9.0 - x)
    longer = torch.cat((x, x.flip(1)), dim=1)
    mask = torch.cat((MASK, torch.zeros_like(MASK)), dim=1)
    found = []
    for batch, its_mask in ((x, MASK), (other, MASK), (longer, mask)):
        model(batch)
        found.append(auxiliary_loss(model, its_mask, TYPES).detach())
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


def test_model_without_balance_losses_costs_nothing():
    plain = layers_model(None)
    plain(tokens())
    assert all(decision is None for decision in decisions(plain).values())
    assert not has_auxiliary_loss(plain)
    loss = auxiliary_loss(plain)
    assert (loss.item(), loss.requires_grad) == (0.0, False)
    assert has_auxiliary_loss(layers_model("switch"))


def test_evaluation_leaves_nothing_to_collect():
    model = layers_model("mixtral").eval()
    model(tokens())
    assert auxiliary_loss(model, MASK) == 0


@EVERY_KIND
def test_loss_is_the_same_under_checkpointing_step_after_step(kind):
    """Recomputed layers decide again in the backward pass; what is left then is not of the next pass."""
    models = chain(kind), chain(kind, checkpoints="not reentrant")
    models[1].load_state_dict(models[0].state_dict())
    for _ in range(2):
        losses = []
        for model in models:
            model.zero_grad()
            output = model(tokens().requires_grad_()).square().sum()
            losses.append(auxiliary_loss(model, MASK, TYPES))
            (output + losses[-1]).backward()
        assert_close(losses[1].detach(), losses[0].detach())
        for (name, one), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None:
                assert_close(other.grad, one.grad, what=name)


def test_what_checkpointing_leaves_of_an_adapter_that_is_no_longer_used_is_dropped():
    model = chain("mixtral", checkpoints="not reentrant")
    model(tokens().requires_grad_()).sum().backward()
    assert all(decision is not None for decision in decisions(model).values())
    model.add_adapter("plain", RankfoldConfig(r=2, target_modules=["encoder"]))
    model.set_adapter("plain")
    model(tokens())
    assert auxiliary_loss(model, MASK) == 0
    assert all(decision is None for decision in decisions(model).values())


def test_forward_pass_without_gradients_is_refused_and_reentrant_checkpointing_named():
    model = chain("mixtral", checkpoints="reentrant")
    model(tokens().requires_grad_())
    with pytest.raises(SpecError, match=r"decided without gradients, .* give it use_reentrant=False"):
        auxiliary_loss(model, MASK)


def test_loss_can_be_looked_at_without_gradients():
    model = layers_model("mixtral")
    with torch.no_grad():
        model(tokens())
        assert auxiliary_loss(model, MASK) > 0


def test_router_that_is_not_trained_has_a_loss_all_the_same():
    model = layers_model("mixtral")
    for _, _, adapter in adapters_in(model):
        adapter.router.requires_grad_(requires_grad=False)
    model(tokens())
    assert auxiliary_loss(model, MASK) > 0


@EVERY_KIND
def test_flattened_tokens_are_those_of_the_mask(kind):
    """A layer may read the tokens of all samples in one row; the mask says where samples begin."""
    losses = []
    for flattens in (False, True):
        torch.manual_seed(0)
        model = chain(kind, flattens=flattens)
        model(tokens())
        losses.append(auxiliary_loss(model, MASK, TYPES).detach())
    assert_close(losses[1], losses[0])


@EVERY_KIND
@pytest.mark.parametrize("mask", [MASK, None], ids=["mask", "none"])
def test_pooler_counts_one_token_a_sample_and_is_a_group_of_its_own(kind, mask):
    model = chain(kind)
    model(tokens())
    found = decisions(model)
    [encoder], [pooler] = (
        [each for path, each in found.items() if name in path] for name in ("encoder", "pooler")
    )
    counts = torch.ones_like(MASK) if mask is None else MASK
    groups = [group([encoder], counts), group([pooler], torch.ones(SAMPLES, 1))]
    expected = 0.5 * LOSSES[kind](groups)
    assert_close(auxiliary_loss(model, mask, TYPES).detach(), expected.detach())


@EVERY_KIND
def test_rows_without_a_mask_are_samples_of_one_token(kind):
    model = layers_model(kind)
    model(tokens(SAMPLES))
    rows = auxiliary_loss(model, None, TYPES)
    model(tokens(SAMPLES).unsqueeze(1))
    assert_close(rows.detach(), auxiliary_loss(model, torch.ones(SAMPLES, 1), TYPES).detach())


def test_more_axes_without_a_mask_are_tokens():
    model = layers_model("llava_mole")
    model(tokens(SAMPLES, 2, 2))
    pictures = auxiliary_loss(model)
    model(tokens(SAMPLES, 2, 2).flatten(1, 2))
    assert_close(pictures.detach(), auxiliary_loss(model).detach())


def test_routers_of_different_numbers_of_heads_are_groups_of_their_own():
    model = layers_model("mixtral", heads=(2, 3))
    model(tokens())
    found = decisions(model)
    groups = [[each for path, each in found.items() if f"blocks.{block}." in path] for block in (0, 1)]
    assert [each[0].probabilities.shape[-1] for each in groups] == [2, 3]
    expected = 0.5 * mixtral_loss([group(each, MASK) for each in groups])
    assert_close(auxiliary_loss(model, MASK).detach(), expected.detach())


@pytest.mark.parametrize(
    ("mask", "task_type", "message"),
    [
        (MASK, None, "the localized balance loss needs task_type, 0 or 1 for each sample; give it to"),
        (MASK, torch.tensor([1, 0, 1]), r"task_type has the shape \(3,\), but 2 samples were routed"),
        (MASK, torch.tensor([1, 2]), r"task_type=\[1, 2\] are not all 0 or 1; give 0 or 1"),
        (
            torch.ones(2, 5),
            TYPES,
            "the attention mask has 10 tokens, but 6 were routed; give the mask of the batch of the last",
        ),
    ],
)
def test_what_is_missing_or_of_another_batch_is_refused(mask, task_type, message):
    model = layers_model("localized")
    model(tokens())
    with pytest.raises(SpecError, match=message):
        auxiliary_loss(model, mask, task_type)


def test_task_types_of_flattened_tokens_without_a_mask_ask_for_it():
    model = routed(Chain(flattens=True, pools=False), "localized", ["encoder"])
    model(tokens())
    with pytest.raises(SpecError, match=r"but 6 samples were routed; .* and the attention mask"):
        auxiliary_loss(model, None, TYPES)
