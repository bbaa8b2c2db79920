"""Auxiliary losses: balance losses of routers, collected from a model after its forward pass."""

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
    RouterDecisions,
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
class _RouterDecision:
    """Decision of one router, with its block and its balance loss."""

    block: tuple[str, ...]
    balance: BalanceSpec
    decision: Decision


def has_auxiliary_loss(model: nn.Module) -> bool:
    """Whether some router of the model has a balance loss."""
    routers = (adapter.router for _, _, adapter in adapters_in(model))
    return any(router is not None and router.spec.balance is not None for router in routers)


def auxiliary_loss(
    model: nn.Module,
    attention_mask: Num[Tensor, "batch tokens"] | None = None,
    task_type: Num[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Balance loss of all routers, to add to the task's loss.

    Call it once after each forward pass in training mode; it consumes the decisions of the routers. Without
    balance losses it is zero and costs nothing. Of a layer that serves several blocks (ALBERT) the last
    decision counts.

    Args:
        model: A model with rankfold adapters.
        attention_mask: 0 for padding, which does not count; every token counts if None. Models that
            flatten the tokens of all samples need it: without it the first dimension of a layer's input
            counts as the samples. Pass none for an encoder-decoder: its mask is of the encoder's tokens, and
            routers of the decoder read others.
        task_type: For LoRAMoE's localized loss, the task type of each sample, 0 or 1.

    Raises:
        SpecError: If a loss needs `task_type`, or the shape of the mask or the types does not fit the routed
            batch, or the forward pass recorded no gradients, as under reentrant checkpointing.

    Example:
        loss = model(**batch).loss + rankfold.auxiliary_loss(model, batch["attention_mask"])
    """
    decisions = list(_take_decisions(model))
    losses = [
        balance.coefficient * _loss(balance, group, attention_mask, task_type)
        for balance, group in _by_balance(decisions).items()
    ]
    return torch.stack(losses).sum() if losses else torch.zeros((), device=_device(model))


def _take_decisions(model: nn.Module) -> Iterator[_RouterDecision]:
    """Remove the decisions from all routers, and yield those of the last forward pass.

    A layer that is recomputed in the backward pass decides again, and the next forward pass overwrites that
    decision, unless the adapter is inactive by then: decisions of inactive adapters are dropped.
    """
    for path, host in hosts_in(model):
        for name, adapter in host.rankfold_adapters.items():
            router = adapter.router
            decision = None if router is None else router.take_decision()
            if router is None or router.spec.balance is None or decision is None:
                continue
            if name in host.active_adapters and adapter.strength:
                _check_gradient(router, decision)
                yield _RouterDecision(block_of(path), router.spec.balance, decision)


def _check_gradient(router: Router, decision: Decision) -> None:
    is_trained = any(parameter.requires_grad for parameter in router.parameters())
    if is_trained and torch.is_grad_enabled() and not decision.probabilities.requires_grad:
        raise SpecError(
            "the routers decided without gradients, so no balance loss trains them; with gradient "
            "checkpointing, give it use_reentrant=False."
        )


def _by_balance(decisions: Sequence[_RouterDecision]) -> dict[BalanceSpec, list[_RouterDecision]]:
    groups: dict[BalanceSpec, list[_RouterDecision]] = defaultdict(list)
    for item in decisions:
        groups[item.balance].append(item)
    return groups


def _loss(
    balance: BalanceSpec, decisions: Sequence[_RouterDecision], mask: Tensor | None, task_type: Tensor | None
) -> Tensor:
    match balance.kind:
        case "switch":
            return switch_loss(_stack_groups(decisions, mask, by_block=True))
        case "mixtral":
            return mixtral_loss(_stack_groups(decisions, mask))
        case "llava_mole":
            return llava_mole_loss(_stack_groups(decisions, mask))
        case "localized":
            groups = _stack_groups(decisions, mask)
            return localized_loss(groups, task_type=_check_task_type(task_type, groups), delta=balance.delta)


def _check_task_type(task_type: Tensor | None, groups: Sequence[RouterDecisions]) -> Tensor:
    if task_type is None:
        raise SpecError(
            "the localized balance loss needs task_type, 0 or 1 for each sample; give it to "
            "auxiliary_loss, or add a column 'task_type' to the data."
        )
    for group in groups:
        if task_type.shape != group.counts.shape[:1]:
            raise SpecError(
                f"task_type has the shape {tuple(task_type.shape)}, but {len(group.counts)} samples were "
                "routed; give one number for each sample, and the attention mask."
            )
    if not bool(((task_type == 0) | (task_type == 1)).all()):
        values = [value.item() for value in task_type]
        raise SpecError(f"task_type={values} are not all 0 or 1; give 0 or 1 for each sample.")
    return task_type


def _stack_groups(
    decisions: Sequence[_RouterDecision], mask: Tensor | None, *, by_block: bool = False
) -> list[RouterDecisions]:
    """Stack the decisions of equal shape, over the whole model or block by block."""
    groups: dict[tuple[tuple[str, ...], torch.Size], list[Decision]] = defaultdict(list)
    for item in decisions:
        shape = _shape(item.decision, mask)
        groups[item.block if by_block else (), shape].append(item.decision)
    return [_stack(group, shape, mask) for (_, shape), group in groups.items()]


def _shape(decision: Decision, mask: Tensor | None) -> torch.Size:
    """Shape of a decision: samples, tokens of a sample, heads."""
    *batch, heads = decision.probabilities.shape
    tokens = math.prod(batch)
    if mask is None:
        return torch.Size((batch[0] if batch else 1, math.prod(batch[1:]), heads))
    # A layer such as a pooler reads one token of each sample, which is never padding.
    if tokens not in (mask.numel(), len(mask)):
        raise SpecError(
            f"the attention mask has {mask.numel()} tokens, but {tokens} were routed; give the mask of the "
            "batch of the last forward pass, or none where layers read other tokens."
        )
    return torch.Size((len(mask), tokens // len(mask), heads))


def _stack(decisions: Sequence[Decision], shape: torch.Size, mask: Tensor | None) -> RouterDecisions:
    probabilities = torch.stack([decision.probabilities.reshape(shape) for decision in decisions])
    selection = torch.stack([decision.chosen.reshape(shape) for decision in decisions])
    if mask is None or mask.shape != shape[:2]:
        return RouterDecisions(probabilities, selection, probabilities.new_ones(shape[:2]))
    return RouterDecisions(probabilities, selection, mask.to(probabilities.device, probabilities.dtype))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class AuxiliaryLossMixin:
    """Mixin for subclasses of `transformers.Trainer`: adds the auxiliary losses of the model to the task's.

    Padding does not count, except in an encoder-decoder. A column `task_type` of the data is removed from the
    batch and used for LoRAMoE's localized loss.

    Example:
        class MyTrainer(rankfold.AuxiliaryLossMixin, transformers.Trainer): ...
    """

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of the Trainer plus, in training mode, the auxiliary losses."""
        task_type = inputs.pop("task_type", None)
        result: Any = cast(Any, super()).compute_loss(model, inputs, *args, **kwargs)
        if not (model.training and has_auxiliary_loss(model)):
            return result
        auxiliary = auxiliary_loss(model, self._mask_of_all_routers(inputs), task_type)
        if kwargs.get("num_items_in_batch") is not None:
            # The Trainer has divided the task's loss by the tokens of all accumulated batches already.
            auxiliary = auxiliary / cast(Any, self).current_gradient_accumulation_steps
        return (result[0] + auxiliary, *result[1:]) if isinstance(result, tuple) else result + auxiliary

    def _mask_of_all_routers(self, inputs: dict[str, Any]) -> Tensor | None:
        """Return the mask of the batch; None for an encoder-decoder: it is of the encoder's tokens."""
        config = getattr(cast(Any, self).model, "config", None)
        return None if getattr(config, "is_encoder_decoder", False) else inputs.get("attention_mask")
