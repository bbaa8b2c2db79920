"""TLoRA+. Cao and Liu, 2026, eq. 1-4: three factors, of which the configuration says which are trained.

Section 3.2 derives its learning rates from entries of variance 1/n in A, 1/r2 in B and 1/r1 in C.
"""

from torch import Tensor

from tests.reference.products import product

TRAINED = {"all": "ABC", "core": "B", "core_and_down": "AB", "core_and_up": "BC"}
"""The paper's configurations 3, 1 and 2, the last for either side."""


def delta(C: Tensor, B: Tensor, A: Tensor, alpha: float | None = None) -> Tensor:
    """dW = C B A, C of m x r1, B of r1 x r2, A of r2 x n; the paper states no scale, ours is alpha / r2."""
    scale = 1.0 if alpha is None else alpha / A.shape[0]
    return scale * product(product(C, B), A)


def parameters(layers: list[tuple[int, int]], r1: int, r2: int, trained: str) -> int:
    """Sum over the layers (n inputs, m outputs) of those of r2 n + r1 r2 + r1 m that are trained."""
    return sum(
        ("A" in trained) * r2 * n + ("B" in trained) * r1 * r2 + ("C" in trained) * r1 * m for n, m in layers
    )
