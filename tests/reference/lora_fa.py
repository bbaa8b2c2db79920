"""LoRA-FA. Zhang et al., 2023, arXiv:2308.03303, section 3.1: LoRA whose A stays at its random start."""

from torch import Tensor

from tests.reference.products import product


def delta(B: Tensor, A_0: Tensor, alpha: float) -> Tensor:
    """dW = (alpha / r) B A_0; no gradient flows to A_0."""
    r = A_0.shape[0]
    return alpha / r * product(B, A_0.detach())


def parameters(layers: list[tuple[int, int]], r: int) -> int:
    """Sum over the layers (n inputs, m outputs) of r m: B alone."""
    return sum(r * m for _, m in layers)
