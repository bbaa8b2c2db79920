"""The layers of an MLP and their experts, as LLaVA-MoLE and MixLoRA have them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from tests.reference.gates import affine

Hidden = Callable[..., Tensor]
"""From what the layers that read the MLP's input wrote to what its last layer reads."""


class Layer(NamedTuple):
    """One linear layer W, b with the factors A_e, B_e of its experts."""

    W: Tensor
    b: Tensor
    A: Sequence[Tensor]
    B: Sequence[Tensor]

    def base(self, x: Tensor) -> Tensor:
        """W x + b."""
        return affine(self.W, self.b, x)

    def expert(self, e: int, x: Tensor, alpha: float) -> Tensor:
        """(alpha / r) B_e A_e x."""
        r = self.A[e].shape[0]
        return alpha / r * (self.B[e] @ (self.A[e] @ x))


class Mlp(NamedTuple):
    """Layers that read the input, the activation between, and the layer that writes the output."""

    entries: Sequence[Layer]
    hidden: Hidden
    exit: Layer
