"""Sums of products, entry by entry."""

import torch
from torch import Tensor


def product(P: Tensor, Q: Tensor) -> Tensor:
    """(P Q)_ij = sum_t P_it Q_tj."""
    assert P.shape[1] == Q.shape[0]
    entries = [
        sum(P[i, t] * Q[t, j] for t in range(P.shape[1]))
        for i in range(P.shape[0])
        for j in range(Q.shape[1])
    ]
    return torch.stack(entries).reshape(P.shape[0], Q.shape[1])
