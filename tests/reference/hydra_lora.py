"""HydraLoRA. Tian et al., 2024, arXiv:2404.19245, section 3.2, eq. 4 and 5: one A, heads B_i, a router."""

from collections.abc import Sequence

from torch import Tensor

from tests.reference.gates import affine, each_token, softmax


def forward(
    x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Sequence[Tensor], W_g: Tensor, alpha: float
) -> Tensor:
    """y = W x + b + (alpha / r) sum_i w_i B_i A x, w = softmax(W_g x); W_g is N x n."""
    r = A.shape[0]

    def token(x: Tensor) -> Tensor:
        w = softmax(W_g @ x)
        change = sum(w[i] * (B[i] @ (A @ x)) for i in range(len(B)))
        return affine(W, b, x) + alpha / r * change

    return each_token(token, x)


def parameters(layers: list[tuple[int, int]], r: int, N: int) -> int:
    """Sum over the layers (n inputs, m outputs) of r n + N r m; the router's N n are not in the paper's."""
    return sum(r * n + N * r * m for n, m in layers)


def router_parameters(layers: list[tuple[int, int]], N: int) -> int:
    """Sum over the layers of N n."""
    return sum(N * n for n, _ in layers)
