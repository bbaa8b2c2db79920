"""LoRA. Hu et al., 2022, arXiv:2106.09685, section 4.1, eq. 3.

Rank-stabilised: Kalajdzievski, 2023, arXiv:2312.03732.
"""

import math

from torch import Tensor

from tests.reference.products import product


def delta(B: Tensor, A: Tensor, alpha: float) -> Tensor:
    """dW = (alpha / r) B A, B of m x r and A of r x n."""
    r = A.shape[0]
    return alpha / r * product(B, A)


def rank_stabilised_delta(B: Tensor, A: Tensor, alpha: float) -> Tensor:
    """dW = (alpha / sqrt(r)) B A."""
    r = A.shape[0]
    return alpha / math.sqrt(r) * product(B, A)


def parameters(layers: list[tuple[int, int]], r: int) -> int:
    """Sum over the layers (n inputs, m outputs) of r (m + n)."""
    return sum(r * (m + n) for n, m in layers)
