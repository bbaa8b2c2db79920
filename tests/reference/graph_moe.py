"""GraphMoE, an experiment after the idea of Tang et al., 2025, arXiv:2501.07890; not the paper's formula.

Heads are nodes of a graph. A router decides T times; before each further time a recurrent cell changes the
token's state by what the nodes chosen so far say. The gates of the last round weigh the heads.
"""

from collections.abc import Mapping, Sequence

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
    cell: Mapping[str, Tensor],
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


def gru(m: Tensor, h: Tensor, cell: Mapping[str, Tensor]) -> Tensor:
    """Cho et al., 2014, as torch has it: reset s, update u, candidate c; (1 - u) c + u h.

    The cell's matrices and biases are those of s, u and c, one above the other.
    """
    W_s, W_u, W_c = cell["weight_ih"].chunk(3)
    V_s, V_u, V_c = cell["weight_hh"].chunk(3)
    b_s, b_u, b_c = cell["bias_ih"].chunk(3)
    d_s, d_u, d_c = cell["bias_hh"].chunk(3)
    s = torch.sigmoid(W_s @ m + b_s + V_s @ h + d_s)
    u = torch.sigmoid(W_u @ m + b_u + V_u @ h + d_u)
    c = torch.tanh(W_c @ m + b_c + s * (V_c @ h + d_c))
    return (1 - u) * c + u * h


def parameters(layers: list[tuple[int, int]], r: int, N: int, rounds: int) -> int:
    """r n + N r m a layer (n inputs, m outputs), N r of its router; with more rounds N r and 6 r (r + 1)."""
    deliberation = 0 if rounds == 1 else N * r + 6 * r * (r + 1)
    return sum(r * n + N * r * m + N * r + deliberation for n, m in layers)
