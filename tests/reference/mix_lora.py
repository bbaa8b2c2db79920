"""MixLoRA. Li et al., 2024, arXiv:2404.15159, section 3.2, eq. 4-6: each expert is an MLP of its own.

Expert e is the frozen MLP with the factors A_e, B_e in each of its layers, so its hidden state is its own and
its output is weighed as a whole. Other layers have plain LoRA.
"""

from torch import Tensor

from tests.reference.experts import Layer, Mlp
from tests.reference.gates import each_token, largest, renormalised, softmax


def mlp(x: Tensor, mlp: Mlp, W_g: Tensor, *, k: int, alpha: float) -> Tensor:
    """sum over the k largest g_e of (g_e / their sum) E_e(x), g = softmax(W_g x)."""

    def expert(e: int, x: Tensor) -> Tensor:
        """E_e(x) = down_e(act(gate_e x) * up_e x)."""

        def layer(one: Layer, v: Tensor) -> Tensor:
            return one.base(v) + one.expert(e, v, alpha)

        return layer(mlp.exit, mlp.hidden(*(layer(entry, x) for entry in mlp.entries)))

    def token(x: Tensor) -> Tensor:
        g = softmax(W_g @ x)
        gates = renormalised(g, largest(g, k))
        return sum(gates[e] * expert(e, x) for e in gates)

    return each_token(token, x)


def parameters(attention: list[tuple[int, int]], mlps: list[list[tuple[int, int]]], r: int, N: int) -> int:
    """r (m + n) a layer in attention; in each MLP N r (m + n) a layer and N n, n being its input."""
    plain = sum(r * (m + n) for n, m in attention)
    experts = sum(N * r * (m + n) for layers in mlps for n, m in layers)
    return plain + experts + sum(N * layers[0][0] for layers in mlps)
