"""The auxiliary losses of routers, collected from a model after its forward pass."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankfold.adapter.balance import (
    BalanceSpec,
    Routed,
    llava_mole_loss,
    localized_loss,
    mixtral_loss,
    switch_loss,
)
from rankfold.adapter.find import adapters_in, block_of
from rankfold.adapter.router import Decision
from rankfold.errors import SpecError


@final
@dataclass(frozen=True, slots=True)
class _Taken:
    """A decision with where it was taken, and what is to be made of it."""

    block: int | None
    balance: BalanceSpec
    decision: Decision


def has_auxiliary_loss(model: nn.Module) -> bool:
    """Whether some router of the model asks for a balance loss."""
    routers = (adapter.router for _, _, adapter in adapters_in(model))
    return any(router is not None and router.spec.balance is not None for router in routers)


def auxiliary_loss(
    model: nn.Module,
    attention_mask: Float[Tensor, "batch tokens"] | None = None,
    task_type: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return what is to be added to the task's loss so that the heads of routers stay in use.

    Call it once after each forward pass in training mode; it takes what the routers decided and leaves
    nothing behind. Without balance losses it is zero and costs nothing.

    Args:
        model: A model with rankfold adapters.
        attention_mask: 0 where a token is padding, which does not count; every token counts if None.
        task_type: For LoRAMoE's localized loss, each sample's type of task, 0 or 1.

    Raises:
        SpecError: If a loss needs `task_type`, or the mask is not of the batch that was routed.

    Example:
        loss = model(**batch).loss + rankfold.auxiliary_loss(model, batch["attention_mask"])
    """
    taken = list(_take(model))
    losses = [
        balance.coefficient * _loss(balance, decisions, attention_mask, task_type)
        for balance, decisions in _by_balance(taken).items()
    ]
    return torch.stack(losses).sum() if losses else torch.zeros((), device=_device(model))


def _take(model: nn.Module) -> Iterator[_Taken]:
    for path, _, adapter in adapters_in(model):
        router = adapter.router
        decision = None if router is None else router.take_decision()
        if router is not None and router.spec.balance is not None and decision is not None:
            yield _Taken(block_of(path), router.spec.balance, decision)


def _by_balance(taken: Sequence[_Taken]) -> dict[BalanceSpec, list[_Taken]]:
    groups: dict[BalanceSpec, list[_Taken]] = defaultdict(list)
    for each in taken:
        groups[each.balance].append(each)
    return groups


def _loss(
    balance: BalanceSpec, taken: Sequence[_Taken], mask: Tensor | None, task_type: Tensor | None
) -> Tensor:
    match balance.kind:
        case "switch":
            return switch_loss(_groups(taken, mask, by_block=True))
        case "mixtral":
            return mixtral_loss(_groups(taken, mask))
        case "llava_mole":
            return llava_mole_loss(_groups(taken, mask))
        case "localized":
            if task_type is None:
                raise SpecError(
                    "the localized balance loss needs task_type, 0 or 1 for each sample; give it to "
                    "auxiliary_loss, or a column 'task_type' to the data."
                )
            return localized_loss(_groups(taken, mask), task_type=task_type, delta=balance.delta)


def _groups(taken: Sequence[_Taken], mask: Tensor | None, *, by_block: bool = False) -> list[Routed]:
    """Return the decisions of routers with equal numbers of heads side by side, of each block if asked."""
    groups: dict[tuple[int | None, int], list[Decision]] = defaultdict(list)
    for each in taken:
        heads = each.decision.probabilities.shape[-1]
        groups[each.block if by_block else None, heads].append(each.decision)
    return [_routed(decisions, mask) for decisions in groups.values()]


def _routed(decisions: Sequence[Decision], mask: Tensor | None) -> Routed:
    first = decisions[0].probabilities
    counts = first.new_ones(first.shape[:2]) if mask is None else mask.to(first.device, first.dtype)
    tokens = first[..., 0].numel()
    if counts.numel() != tokens:
        raise SpecError(
            f"the attention mask has {counts.numel()} tokens, but {tokens} were routed; give the mask of the "
            "batch of the last forward pass."
        )
    batch = (*counts.shape, first.shape[-1])
    return Routed(
        torch.stack([each.probabilities.reshape(batch) for each in decisions]),
        torch.stack([each.chosen.reshape(batch) for each in decisions]),
        counts,
    )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
