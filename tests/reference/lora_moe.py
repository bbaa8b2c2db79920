"""LoRAMoE. Dou et al., 2024, arXiv:2312.09979, section 3.2: experts in the layers of MLPs, all weighed."""

from collections.abc import Sequence

from torch import Tensor

from tests.reference.gates import affine, each_token, softmax


def forward(
    x: Tensor, W: Tensor, b: Tensor, A: Sequence[Tensor], B: Sequence[Tensor], W_g: Tensor, alpha: float
) -> Tensor:
    """y = W x + b + (alpha / r) sum_e g_e B_e A_e x, g = softmax(W_g x)."""
    r = A[0].shape[0]

    def token(x: Tensor) -> Tensor:
        g = softmax(W_g @ x)
        return affine(W, b, x) + alpha / r * sum(g[e] * (B[e] @ (A[e] @ x)) for e in range(len(A)))

    return each_token(token, x)


def parameters(layers: list[tuple[int, int]], r: int, N: int) -> int:
    """Sum over the MLPs' layers (n inputs, m outputs) of N (r (m + n) + n)."""
    return sum(N * (r * (m + n) + n) for n, m in layers)
