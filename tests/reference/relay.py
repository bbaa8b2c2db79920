"""Relayed LoRA, section 3, eq. 5-12 and Figure 2.

dW = A B, where A (m x r) and B (r x n) are not trained themselves: their entries are those of the squares
A1 A2 and B1 B2, one after the other, and what the square has too many is discarded. A1 and B1 are d x k, A2
and B2 are k x d.

Figure 2 fills the matrix row by row from the square, row by row (`row_major`). The text says that any fixed
assignment would do; `strided` is ours: it keeps the rank, which row by row does not.
"""

import math

import torch
from torch import Tensor

from tests.reference.products import product


def side(entries: int) -> int:
    """d = ceil(sqrt(entries)), the least square that has enough of them (eq. 6, 7)."""
    d = 0
    while d * d < entries:
        d += 1
    return d


def row_major(number: int, d: int) -> tuple[int, int]:
    """Entry `number` of the matrix is the entry of the square with the same number, counted row by row."""
    return divmod(number, d)


def strided(number: int, d: int) -> tuple[int, int]:
    """As `row_major`, but in steps of the least t > d that is coprime to d d, around and around."""
    t = d + 1
    while math.gcd(t, d * d) != 1:
        t += 1
    flat = 0
    for _ in range(number):
        flat = (flat + t) % (d * d)
    return divmod(flat, d)


def relayed(left: Tensor, right: Tensor, rows: int, cols: int, position=row_major) -> Tensor:
    """The rows x cols matrix whose entry `number`, row by row, is at `position(number, d)` in left right."""
    d = side(rows * cols)
    square = product(left, right)
    assert square.shape == (d, d)
    matrix = [[square[position(i * cols + j, d)] for j in range(cols)] for i in range(rows)]
    return torch.stack([torch.stack(row) for row in matrix])


def delta(A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """dW = (alpha / r) A B (eq. 5). The paper states no scale; this is LoRA's, whose settings it has."""
    r = B.shape[0]
    return alpha / r * product(A, B)


def parameters(layers: list[tuple[int, int]], r: int, k: int) -> int:
    """Sum over the layers (n inputs, m outputs) of 2 k (d_A + d_B) (eq. 9, 10)."""
    return sum(2 * k * (side(m * r) + side(r * n)) for n, m in layers)
