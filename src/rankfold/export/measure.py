"""How far one change of a weight is from another, both as thin products, without forming the weight."""

from typing import Any

import torch
from torch import Tensor

from rankfold.adapter.module import Adapter
from rankfold.export.fold import Folded

_LINALG: Any = torch.linalg  # torch leaves its functions untyped


@torch.no_grad()
def trained_product(adapter: Adapter) -> Folded:
    """Return what an adapter computes, in float64: U s, and C V as it stands, whichever side is thinner.

    It is the adapter's formula itself, what a folded one is measured against.

    Raises:
        NotExactError: If a router weighs the heads.
    """
    adapter.check_is_a_weight("this adapter")
    down = adapter.down().double()
    if adapter.core is not None:
        down = adapter.core().double() @ down
    scale = 1.0 if adapter.scale is None else adapter.scale().double()
    up = adapter.up().double() * (adapter.scaling * adapter.strength * scale)
    return Folded(down, up, adapter.geometry)


def relative_error(actual: Folded, expected: Folded) -> float:
    """Return the Frobenius norm of the difference over that of `expected`; 0 where both are zero."""
    down = torch.cat([actual.down.double(), expected.down.double()])
    up = torch.cat([actual.up.double(), -expected.up.double()], dim=1)
    size, error = _norm(expected.down.double(), expected.up.double()), _norm(down, up)
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size


def _norm(down: Tensor, up: Tensor) -> float:
    """Return the Frobenius norm of up @ down: orthonormal parts of both sides do not change it."""
    return frobenius(_LINALG.qr(up).R @ _LINALG.qr(down.T).R.T)


def frobenius(matrix: Tensor) -> float:
    """Return the Frobenius norm."""
    return _LINALG.vector_norm(matrix).item()
