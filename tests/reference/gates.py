"""Common parts of the mixtures: gates of one token, and a formula for one token over all of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    """g_e = exp(s_e) / sum over f of exp(s_f)."""
    powers = [score.exp() for score in scores]
    return torch.stack([power / sum(powers) for power in powers])


def largest(g: Tensor, k: int) -> list[int]:
    """The k heads with the largest gates, the largest first."""
    return sorted(range(len(g)), key=lambda e: -g[e].item())[:k]


def renormalised(g: Tensor, chosen: Sequence[int]) -> dict[int, Tensor]:
    """Gates of the chosen heads, divided by their sum."""
    return {e: g[e] / sum(g[f] for f in chosen) for e in chosen}


def affine(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """y_o = b_o + sum_i W_oi x_i."""
    return torch.stack([b[o] + sum(W[o, i] * x[i] for i in range(len(x))) for o in range(len(b))])


def each_token(formula: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The formula of every token x[...]."""
    return torch.stack([formula(token) for token in x.flatten(0, -2)]).unflatten(0, x.shape[:-1])
