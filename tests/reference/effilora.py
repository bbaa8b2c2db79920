"""EffiLoRA. Tian et al., 2025, arXiv:2512.00878, section 3.1: one A for all layers, heads B_i in each.

With one head there is no router. Layers of different input widths cannot read one A; those of one width do.
"""

from torch import Tensor

from tests.reference.products import product


def delta(B: Tensor, A: Tensor, alpha: float) -> Tensor:
    """dW_l = (alpha / r) B_l A."""
    r = A.shape[0]
    return alpha / r * product(B, A)


def parameters(layers: list[tuple[int, int]], r: int) -> int:
    """r n for each distinct n, and r m for each layer (n inputs, m outputs)."""
    widths = {n for n, _ in layers}
    return sum(r * n for n in widths) + sum(r * m for _, m in layers)
