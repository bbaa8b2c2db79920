"""The auxiliary losses of routers, collected from a model after its forward pass."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from rankfold.adapter.balance import (
    BalanceSpec,
    Routed,
    llava_mole_loss,
    localized_loss,
    mixtral_loss,
    switch_loss,
)
from rankfold.adapter.layout import block_of
from rankfold.adapter.module import adapters_in, hosts_in
from rankfold.adapter.router import Decision, Router
from rankfold.errors import SpecError


@final
@dataclass(frozen=True, slots=True)
class _Taken:
    """A decision with where it was taken, and what is to be made of it."""

    block: tuple[str, ...]
    balance: BalanceSpec
    decision: Decision


def has_auxiliary_loss(model: nn.Module) -> bool:
    """Whether some router of the model asks for a balance loss."""
    routers = (adapter.router for _, _, adapter in adapters_in(model))
    return any(router is not None and router.spec.balance is not None for router in routers)


def auxiliary_loss(
    model: nn.Module,
    attention_mask: Num[Tensor, "batch tokens"] | None = None,
    task_type: Num[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return what is to be added to the task's loss so that the heads of routers stay in use.

    Call it once after each forward pass in training mode; it takes what the routers decided and leaves
    nothing behind. Without balance losses it is zero and costs nothing. A layer that serves several blocks
    (ALBERT) is counted as it decided last.

    Args:
        model: A model with rankfold adapters.
        attention_mask: 0 where a token is padding, which does not count; every token counts if None. It is
            needed where a model puts the tokens of all samples in one row: without it, what comes first in a
            layer's input is taken for the samples. Give none for an encoder-decoder: its mask is of the
            encoder's tokens, and routers of the decoder read others.
        task_type: For LoRAMoE's localized loss, each sample's type of task, 0 or 1.

    Raises:
        SpecError: If a loss needs `task_type`, or the mask or the types are not of the batch that was routed,
            or the forward pass recorded no gradients, as under reentrant checkpointing.

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
    """Take all decisions, and yield those of the last forward pass.

    A layer that is recomputed in the backward pass decides again, which the next forward pass writes over;
    unless the adapter is not used then, so that what is left is not of that pass.
    """
    for path, host in hosts_in(model):
        for name, adapter in host.rankfold_adapters.items():
            router = adapter.router
            decision = None if router is None else router.take_decision()
            if router is None or router.spec.balance is None or decision is None:
                continue
            if name in host.active_adapters and adapter.strength:
                _check_gradient(router, decision)
                yield _Taken(block_of(path), router.spec.balance, decision)


def _check_gradient(router: Router, decision: Decision) -> None:
    is_trained = any(parameter.requires_grad for parameter in router.parameters())
    if is_trained and torch.is_grad_enabled() and not decision.probabilities.requires_grad:
        raise SpecError(
            "the routers decided without gradients, so that no balance loss reaches them; where that comes "
            "from checkpointing, give it use_reentrant=False."
        )


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
            groups = _groups(taken, mask)
            return localized_loss(groups, task_type=_checked(task_type, groups), delta=balance.delta)


def _checked(task_type: Tensor | None, groups: Sequence[Routed]) -> Tensor:
    if task_type is None:
        raise SpecError(
            "the localized balance loss needs task_type, 0 or 1 for each sample; give it to "
            "auxiliary_loss, or a column 'task_type' to the data."
        )
    for group in groups:
        if task_type.shape != group.counts.shape[:1]:
            raise SpecError(
                f"task_type has the shape {tuple(task_type.shape)}, but {len(group.counts)} samples were "
                "routed; give one number for each sample, and the attention mask."
            )
    if not bool(((task_type == 0) | (task_type == 1)).all()):
        found = [each.item() for each in task_type]
        raise SpecError(f"task_type={found} are not all 0 or 1; there are two types of task.")
    return task_type


def _groups(taken: Sequence[_Taken], mask: Tensor | None, *, by_block: bool = False) -> list[Routed]:
    """Return the decisions of routers of as many heads and tokens side by side, of each block if asked."""
    groups: dict[tuple[tuple[str, ...], torch.Size], list[Decision]] = defaultdict(list)
    for each in taken:
        shape = _shape(each.decision, mask)
        groups[each.block if by_block else (), shape].append(each.decision)
    return [_routed(decisions, shape, mask) for (_, shape), decisions in groups.items()]


def _shape(decision: Decision, mask: Tensor | None) -> torch.Size:
    """Return the samples, the tokens of a sample and the heads of a decision."""
    *batch, heads = decision.probabilities.shape
    routed = math.prod(batch)
    if mask is None:
        return torch.Size((batch[0] if batch else 1, math.prod(batch[1:]), heads))
    # A layer such as a pooler reads one token of each sample, which is never padding.
    if routed not in (mask.numel(), len(mask)):
        raise SpecError(
            f"the attention mask has {mask.numel()} tokens, but {routed} were routed; give the mask of the "
            "batch of the last forward pass, or none where layers read tokens that it is not about."
        )
    return torch.Size((len(mask), routed // len(mask), heads))


def _routed(decisions: Sequence[Decision], shape: torch.Size, mask: Tensor | None) -> Routed:
    probabilities = torch.stack([each.probabilities.reshape(shape) for each in decisions])
    chosen = torch.stack([each.chosen.reshape(shape) for each in decisions])
    if mask is None or mask.shape != shape[:2]:
        return Routed(probabilities, chosen, probabilities.new_ones(shape[:2]))
    return Routed(probabilities, chosen, mask.to(probabilities.device, probabilities.dtype))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class AuxiliaryLossMixin:
    """For a subclass of `transformers.Trainer`: adds the auxiliary losses of the model to the task's.

    Padding does not count, except in an encoder-decoder. A column `task_type` of the data is taken out of
    the batch for LoRAMoE's localized loss.

    Example:
        class MyTrainer(rankfold.AuxiliaryLossMixin, transformers.Trainer): ...
    """

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the Trainer computes, with the auxiliary losses added while the model is trained."""
        task_type = inputs.pop("task_type", None)
        computed: Any = cast(Any, super()).compute_loss(model, inputs, *args, **kwargs)
        if not (model.training and has_auxiliary_loss(model)):
            return computed
        added = auxiliary_loss(model, self._mask_of_all_routers(inputs), task_type)
        if kwargs.get("num_items_in_batch") is not None:
            # The Trainer has divided the task's loss by the tokens of all its parts, and divides no more.
            added = added / cast(Any, self).current_gradient_accumulation_steps
        return (computed[0] + added, *computed[1:]) if isinstance(computed, tuple) else computed + added

    def _mask_of_all_routers(self, inputs: dict[str, Any]) -> Tensor | None:
        """Return the mask of the batch, or None for an encoder-decoder: it is not of the decoder's tokens."""
        config = getattr(cast(Any, self).model, "config", None)
        return None if getattr(config, "is_encoder_decoder", False) else inputs.get("attention_mask")
