"""Compressing: a plain LoRA of smaller rank, with an error that is measured. It is never called exact."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from rankfold.adapter.module import Adapter
from rankfold.errors import SpecError
from rankfold.export.fold import Folded

_LINALG: Any = torch.linalg  # torch leaves its functions untyped


@final
@dataclass(frozen=True, slots=True)
class Compression:
    """How far to compress: to a rank, or to an error; exactly one of them.

    Args:
        rank: The rank of every layer.
        error: The largest relative error of a layer's change; each layer gets the smallest rank that keeps
            it.

    Raises:
        SpecError: If both or none are given, or one is out of range.
    """

    rank: int | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        """Check both fields."""
        if (self.rank is None) == (self.error is None):
            raise SpecError("compressing takes either a rank or an error; give exactly one of them.")
        if self.rank is not None and self.rank < 1:
            raise SpecError(f"a compressed rank of {self.rank} leaves nothing; give at least 1.")
        if self.error is not None and not 0 < self.error < 1:
            raise SpecError(f"a compression error of {self.error} is not a share; give one between 0 and 1.")

    def rank_of(self, values: Sequence[float]) -> int:
        """Return the rank to keep of singular values, largest first."""
        if self.rank is not None:
            return min(self.rank, len(values))
        allowed = (self.error or 0.0) ** 2 * math.fsum(value**2 for value in values)
        rank, lost = len(values), 0.0
        while rank > 1 and lost + values[rank - 1] ** 2 <= allowed:
            rank -= 1
            lost += values[rank] ** 2
        return rank


@torch.no_grad()
def compress(folded: Folded, compression: Compression) -> Folded:
    """Return the nearest product of a smaller rank: the truncated singular value decomposition.

    It is taken of the two thin matrices, so it costs what their rank does, not what the weight does.
    """
    up, down = _LINALG.qr(folded.up.double()), _LINALG.qr(folded.down.double().T)
    left, values, right = _LINALG.svd(up.R @ down.R.T, full_matrices=False)
    rank = compression.rank_of(values.tolist())
    # The roots on both sides keep both in the range of small dtypes.
    roots = values[:rank].sqrt()
    return Folded(
        roots[:, None] * (right[:rank] @ down.Q.T), (up.Q @ left[:, :rank]) * roots, folded.geometry
    )


@torch.no_grad()
def with_mean_gates(adapter: Adapter, gates: Float[Tensor, " heads"]) -> Folded:
    """Return what an adapter with a router computes where every token gets the same gates, in float64.

    Args:
        adapter: The adapter.
        gates: The weight of each head, such as its mean over real text.
    """
    heads = len(gates)
    codes = adapter.down().double().reshape(adapter.down_heads, -1, adapter.down.cols)
    if adapter.core is not None:
        codes = adapter.core().double() @ codes
    # Heads with one V each lie one above the other; heads that share one read it again.
    down = codes.expand(heads, -1, -1) * gates.double()[:, None, None]
    scale = adapter.scaling * adapter.strength * (1.0 if adapter.scale is None else adapter.scale().double())
    return Folded(down.reshape(-1, adapter.down.cols), adapter.up().double() * scale, adapter.geometry)
