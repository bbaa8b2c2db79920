"""GraphMoE, an experiment after the idea of Tang et al., 2025, arXiv:2501.07890; not the paper's formula.

Heads are nodes of a graph. A router decides T times; before each further time a recurrent cell changes the
token's state by what the nodes chosen so far say. The gates of the last round weigh the heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.gates import affine, each_token, largest, renormalised, softmax


def forward(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    A: Tensor,
    B: Sequence[Tensor],
    *,
    W_g: Tensor,
    nodes: Tensor,
    cell: tuple[Tensor, Tensor],
    k: int,
    rounds: int,
    alpha: float,
) -> Tensor:
    """y = W x + b + (alpha / r) sum over the k chosen e of g_e B_e A x, g of the last of T rounds.

    h_1 = A x; g_t of the k largest of softmax(W_g h_t), divided by their sum; h_t+1 = GRU(m_t, h_t), where
    m_t = (sum over the chosen e of g_te node_e) * h_t.
    """
    r = A.shape[0]

    def token(x: Tensor) -> Tensor:
        z = h = A @ x
        gates = decide(W_g, h, k)
        for _ in range(rounds - 1):
            h = gru(sum(gates[e] * nodes[e] for e in gates) * h, h, cell)
            gates = decide(W_g, h, k)
        return affine(W, b, x) + alpha / r * sum(gates[e] * (B[e] @ z) for e in gates)

    return each_token(token, x)


def decide(W_g: Tensor, h: Tensor, k: int) -> dict[int, Tensor]:
    """The k largest of softmax(W_g h), divided by their sum."""
    g = softmax(W_g @ h)
    return renormalised(g, largest(g, k))


def gru(m: Tensor, h: Tensor, cell: tuple[Tensor, Tensor]) -> Tensor:
    """Cho et al., 2014, as torch has it: reset s, update u, candidate c; (1 - u) c + u h.

    Each of the two matrices is those of s, u and c, one above the other; there are no biases.
    """
    W_s, W_u, W_c = cell[0].chunk(3)
    V_s, V_u, V_c = cell[1].chunk(3)
    s = torch.sigmoid(W_s @ m + V_s @ h)
    u = torch.sigmoid(W_u @ m + V_u @ h)
    c = torch.tanh(W_c @ m + s * (V_c @ h))
    return (1 - u) * c + u * h


def parameters(layers: list[tuple[int, int]], r: int, N: int, rounds: int) -> int:
    """r n + N r m a layer (n inputs, m outputs), N r of its router; with more rounds N r and 6 r^2."""
    deliberation = 0 if rounds == 1 else N * r + 6 * r * r
    return sum(r * n + N * r * m + N * r + deliberation for n, m in layers)
