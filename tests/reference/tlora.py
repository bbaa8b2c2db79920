"""TLoRA. Islam, 2025, arXiv:2504.18735, eq. 1-3: A and C are frozen at random, B and alpha are trained."""

import math

from torch import Tensor

from tests.reference.products import product


def delta(C: Tensor, B: Tensor, A: Tensor, alpha: Tensor) -> Tensor:
    """dW = alpha C B A in the order out x r, r x r, r x in; the paper's code stores all three transposed."""
    return alpha * product(product(C.detach(), B), A.detach())


def std_of_A(n: int, r: int) -> float:
    """Kaiming-normal with a = sqrt(5) of a tensor stored n x r, whose fan-in torch takes to be r."""
    gain = math.sqrt(2 / (1 + 5))
    return gain / math.sqrt(r)


def std_of_C(r: int, m: int) -> float:
    """The same of a tensor stored r x m, whose fan-in torch takes to be m."""
    gain = math.sqrt(2 / (1 + 5))
    return gain / math.sqrt(m)


def parameters(layers: int, r: int) -> int:
    """r r + 1 a layer: B and alpha."""
    return layers * (r * r + 1)
