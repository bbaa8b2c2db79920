"""LLaVA-MoLE. Chen et al., 2024, arXiv:2401.16160, section 3.3, and its released code.

One router reads the MLP's input, with a bias; all layers of the MLP take its answer. In training the best
expert of a token counts, and alone: its output is not multiplied by its probability, so that only the balance
loss trains the router. Other layers have plain LoRA.
"""

from torch import Tensor

from tests.reference.experts import Layer, Mlp
from tests.reference.gates import affine, each_token, largest, softmax


def mlp(x: Tensor, mlp: Mlp, W_g: Tensor, b_g: Tensor, *, mode: str, weights: str, alpha: float) -> Tensor:
    """Each layer l writes W_l v + b_l + (alpha / r) sum_e w_e B_le A_le v, w from the MLP's input x."""

    def token(x: Tensor) -> Tensor:
        w = gates(softmax(affine(W_g, b_g, x)), mode, weights)

        def layer(one: Layer, v: Tensor) -> Tensor:
            return one.base(v) + sum(w[e] * one.expert(e, v, alpha) for e in w)

        return layer(mlp.exit, mlp.hidden(*(layer(entry, x) for entry in mlp.entries)))

    return each_token(token, x)


def gates(g: Tensor, mode: str, weights: str) -> dict[int, Tensor | float]:
    """All probabilities (`dense`), or the weight of the best expert (`top1`).

    That is 1, or its probability, or a 1 with the probability's gradient.
    """
    if mode == "dense":
        return dict(enumerate(g))
    [best] = largest(g, 1)
    weight = {
        "renormalized": 1.0,
        "probability": g[best],
        "straight_through": 1 + g[best] - g[best].detach(),
    }
    return {best: weight[weights]}


def parameters(attention: list[tuple[int, int]], mlps: list[list[tuple[int, int]]], r: int, N: int) -> int:
    """r (m + n) a layer in attention; in each MLP N r (m + n) a layer and N (n + 1), n being its input."""
    plain = sum(r * (m + n) for n, m in attention)
    experts = sum(N * r * (m + n) for layers in mlps for n, m in layers)
    return plain + experts + sum(N * (layers[0][0] + 1) for layers in mlps)
