"""Losses that keep the heads of a router in use, as functions of their decisions.

Each takes probabilities and choices of tokens, [batch, tokens, heads], and a mask of the tokens that count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Num
from torch import Tensor

from rankfold.errors import SpecError, unknown_name

BalanceKind = Literal["switch", "mixtral", "llava_mole", "localized"]
"""`switch`: per block, over the tokens of a batch (MoLA); `mixtral`: over all blocks together (MixLoRA);
`llava_mole`: per sample; `localized`: half of the heads for each type of task (LoRAMoE)."""

BALANCE_KINDS: tuple[BalanceKind, ...] = get_args(BalanceKind)

_TINY = 1e-10


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceSpec:
    """Description of an auxiliary loss.

    Args:
        kind: Which one.
        coefficient: What it is multiplied by before it is added to the task's loss.
        delta: How much the heads of the other type of task are favoured less, for `localized`.

    Raises:
        SpecError: If a value is not possible.
    """

    kind: BalanceKind
    coefficient: float
    delta: float = 0.1

    def __post_init__(self) -> None:
        """Check every field."""
        if self.kind not in BALANCE_KINDS:
            raise unknown_name("balance loss", self.kind, BALANCE_KINDS)
        if not (math.isfinite(self.coefficient) and self.coefficient > 0):
            raise SpecError(
                f"coefficient={self.coefficient} of the balance loss is not above 0; "
                "leave balance out for none."
            )
        if not 0 <= self.delta < 1:
            raise SpecError(
                f"delta={self.delta} of the balance loss is not a share; give one from 0 up to 1."
            )


@final
@dataclass(frozen=True, slots=True)
class RouterDecisions:
    """Decisions of the routers of one group, stacked.

    Args:
        probabilities: [routers, batch, tokens, heads].
        chosen: 1 for each chosen head, of the same shape.
        counts: 1 for each token that counts, 0 for padding, [batch, tokens].
    """

    probabilities: Float[Tensor, "routers batch tokens heads"]
    chosen: Float[Tensor, "routers batch tokens heads"]
    counts: Float[Tensor, "batch tokens"]

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.probabilities.shape[-1]


def switch_loss(blocks: Sequence[RouterDecisions]) -> Float[Tensor, ""]:
    r"""Return $\sum_\ell N_\ell \sum_e f_e P_e$ over blocks (Gao et al., 2024; Fedus et al., 2022, eq. 4).

    f is the share of all choices that fall on a head, P its mean probability, both over the block's tokens.
    """
    losses: list[Tensor] = []
    for block in blocks:
        share = _mean_of_tokens(block.chosen, block.counts)
        share = share / share.sum()
        losses.append(block.heads * (share * _mean_of_tokens(block.probabilities, block.counts)).sum())
    return torch.stack(losses).sum()


def mixtral_loss(groups: Sequence[RouterDecisions]) -> Float[Tensor, ""]:
    r"""Return $N \sum_e f_e P_e$, f summing to `top_k` (Li et al., 2024, after Mixtral's code).

    All routers count as one; with routers of different numbers of heads each number is a loss of its own.
    """
    losses = [
        group.heads
        * (
            _mean_of_tokens(group.chosen, group.counts) * _mean_of_tokens(group.probabilities, group.counts)
        ).sum()
        for group in groups
    ]
    return torch.stack(losses).sum()


def llava_mole_loss(groups: Sequence[RouterDecisions]) -> Float[Tensor, ""]:
    r"""Return the mean over samples of $\sum_e$ mean(p_e) mean(chosen_e) (Chen et al., 2024).

    The means are over a sample's tokens and all routers.
    """
    losses: list[Tensor] = []
    for group in groups:
        weights = group.counts / group.counts.sum(dim=1, keepdim=True).clamp(min=1)
        probability, choice = (
            torch.einsum("rbth,bt->bh", values, weights) / len(values)
            for values in (group.probabilities, group.chosen)
        )
        losses.append((probability * choice).sum(dim=-1).mean())
    return torch.stack(losses).sum()


def localized_loss(
    routers: Sequence[RouterDecisions], *, task_type: Num[Tensor, " batch"], delta: float
) -> Float[Tensor, ""]:
    r"""Return $\sum$ Var(q) / Mean(q)² over routers (Dou et al., 2024, eq. 7).

    q is what a sample gives to a head, summed over its tokens, times 1 + delta if the head is of the half for
    the sample's type of task (type 1: the first half), else times 1 - delta.
    """
    losses: list[Tensor] = []
    for group in routers:
        first_half = torch.arange(group.heads, device=group.counts.device) < group.heads // 2
        matches = first_half[None, :] == (task_type.to(group.counts.device) == 1)[:, None]
        favour = 1 + delta * (2 * matches.to(group.probabilities.dtype) - 1)
        for probabilities in group.probabilities:
            share = torch.einsum("bth,bt->bh", probabilities, group.counts) * favour
            losses.append(share.var() / (share.mean() ** 2 + _TINY))
    return torch.stack(losses).sum()


def _mean_of_tokens(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over routers and the tokens that count, [heads]."""
    tokens = counts.sum().clamp(min=1)
    return torch.einsum("rbth,bt->h", values, counts) / (tokens * len(values))
