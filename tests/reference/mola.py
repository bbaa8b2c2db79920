"""MoLA. Gao et al., 2024, arXiv:2402.08562, section 3: N_l experts in block l, two for a token."""

from collections.abc import Sequence

from torch import Tensor

from tests.reference.gates import affine, each_token, largest, renormalised, softmax


def forward(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    W_g: Tensor,
    *,
    k: int,
    alpha: float,
) -> Tensor:
    """y = W x + b + (alpha / r) sum over the k largest g_e of (g_e / their sum) B_e A_e x.

    g = softmax(W_g x), W_g of N x n.
    """
    r = A[0].shape[0]

    def token(x: Tensor) -> Tensor:
        g = softmax(W_g @ x)
        gates = renormalised(g, largest(g, k))
        return affine(W, b, x) + alpha / r * sum(gates[e] * (B[e] @ (A[e] @ x)) for e in gates)

    return each_token(token, x)


def parameters(blocks: list[list[tuple[int, int]]], r: int, N: Sequence[int]) -> int:
    """Sum over blocks l and their layers (n inputs, m outputs) of N_l (r (m + n) + n)."""
    return sum(N_l * (r * (m + n) + n) for layers, N_l in zip(blocks, N, strict=True) for n, m in layers)
