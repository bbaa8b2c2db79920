"""NoRA, nested LoRA. Lin et al., 2024, arXiv:2408.10280, as far as it can be read: abstract and reviews.

The outer pair is frozen and taken from the base weight, W = U S V^T; the inner pair B A is trained. Singular
vectors have a sign to choose: here the largest entry of each right one is positive. Outer factors are kept in
single precision.
"""

import torch
from torch import Tensor

from tests.reference.products import product


def outer(W: Tensor, r: int, split: str = "up") -> tuple[Tensor, Tensor]:
    """U_r S_r (m x r) and V_r^T (r x n), or, for `even`, the root of S_r with each."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    for t in range(r):
        entry = max(Vh[t], key=abs)
        sign = 1 if entry > 0 else -1
        U[:, t] *= sign
        Vh[t] *= sign
    left, right = (S, torch.ones_like(S)) if split == "up" else (S.sqrt(), S.sqrt())
    B_outer = torch.stack([U[:, t] * left[t] for t in range(r)], dim=1)
    A_outer = torch.stack([Vh[t] * right[t] for t in range(r)])
    return B_outer.float().double(), A_outer.float().double()


def delta(W: Tensor, B: Tensor, A: Tensor, r: int, alpha: float, split: str = "up") -> Tensor:
    """dW = (alpha / r) (U_r S_r) B A V_r^T, B of r x r' and A of r' x r."""
    B_outer, A_outer = outer(W, r, split)
    return alpha / r * product(product(B_outer, product(B, A)), A_outer)


def parameters(layers: int, r: int, inner: int) -> int:
    """2 r r' a layer, r' being the inner rank."""
    return layers * 2 * r * inner
