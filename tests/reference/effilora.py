"""EffiLoRA. Tian et al., 2025, arXiv:2512.00878, section 3.1: one A for all layers, heads B_i in each.

With one head there is no router. Layers of different input widths cannot read one A; those of one width do.
W_g is r x N, so what it reads is A x, although the text says that it reads the token itself.
"""

from collections.abc import Sequence

from torch import Tensor

from tests.reference.gates import affine, each_token, softmax
from tests.reference.products import product


def delta(B: Tensor, A: Tensor, alpha: float) -> Tensor:
    """dW_l = (alpha / r) B_l A, with one head."""
    r = A.shape[0]
    return alpha / r * product(B, A)


def forward(
    x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Sequence[Tensor], W_g: Tensor, alpha: float
) -> Tensor:
    """y = W x + b + (alpha / r) sum_i w_i B_i A x, w = softmax(W_g^T A x)."""
    r = A.shape[0]

    def token(x: Tensor) -> Tensor:
        z = A @ x
        w = softmax(W_g.T @ z)
        return affine(W, b, x) + alpha / r * sum(w[i] * (B[i] @ z) for i in range(len(B)))

    return each_token(token, x)


def parameters(layers: list[tuple[int, int]], r: int, N: int = 1) -> int:
    """r n for each distinct n; for each layer (n inputs, m outputs) N r m, and N r for a router if N > 1."""
    widths = {n for n, _ in layers}
    routers = 0 if N == 1 else N * r * len(layers)
    return sum(r * n for n in widths) + sum(N * r * m for _, m in layers) + routers
