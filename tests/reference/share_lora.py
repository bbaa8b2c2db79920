"""ShareLoRA. Song et al., 2024, arXiv:2406.10785, section 3: ShareA, ShareB and ShareAB.

Layers share by their type: one matrix for all the queries, another for all the values.
"""

from torch import Tensor

from tests.reference.products import product


def delta(B: Tensor, A: Tensor, alpha: float) -> Tensor:
    """dW_l = (alpha / r) B_l A for ShareA, B A_l for ShareB, B A for ShareAB."""
    r = A.shape[0]
    return alpha / r * product(B, A)


def parameters(layers: list[tuple[str, int, int]], r: int, shared: str) -> int:
    """Layers are (type, n inputs, m outputs); a shared factor counts once a type."""
    total, seen = 0, set()
    for kind, n, m in layers:
        if shared == "up" or kind not in seen:
            total += r * n
        if shared == "down" or kind not in seen:
            total += r * m
        seen.add(kind)
    return total
