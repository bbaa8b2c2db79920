"""Compress an adapter to a plain LoRA of smaller rank, with a measured error. It is never called exact."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from rankfold.adapter.module import adapters_in
from rankfold.adapter.router import Router
from rankfold.errors import SpecError
from rankfold.export.fold import LowRankUpdate, fold, fold_with_gates

_LINALG: Any = torch.linalg  # torch leaves its functions untyped


@final
@dataclass(frozen=True, slots=True)
class Compression:
    """How far to compress: to a rank, or to an error; exactly one of them.

    Args:
        rank: The rank of every layer.
        error: The largest relative error of a layer's update; each layer gets the smallest rank within it.

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
            raise SpecError(f"a compression error of {self.error} is no share; give one between 0 and 1.")

    def rank_of(self, values: Sequence[float]) -> int:
        """Return how many singular values to keep; they come largest first."""
        if self.rank is not None:
            return min(self.rank, len(values))
        most = (self.error or 0.0) ** 2 * math.fsum(value**2 for value in values)
        rank, loss = len(values), 0.0
        while rank > 1 and loss + values[rank - 1] ** 2 <= most:
            rank -= 1
            loss += values[rank] ** 2
        return rank


@torch.no_grad()
def compress(update: LowRankUpdate, compression: Compression) -> LowRankUpdate:
    """Return the nearest update of a smaller rank: the truncated singular value decomposition.

    Experts get one rank, since a file of PEFT's LoRA has one; an error is that of all of them together.

    It is computed from the two thin matrices, so its cost follows their rank, not the size of the weight.
    """
    up, down = _LINALG.qr(update.up.double()), _LINALG.qr(update.down.double().mT)
    left, values, right = _LINALG.svd(up.R @ down.R.mT, full_matrices=False)
    sizes: Tensor = values if values.ndim == 1 else _LINALG.vector_norm(values, dim=0)
    singular_values: list[float] = cast(Any, sizes).tolist()
    rank = compression.rank_of(singular_values)
    # The roots on both sides keep both in the range of small dtypes.
    roots = values[..., :rank].sqrt()
    return LowRankUpdate(
        roots[..., :, None] * (right[..., :rank, :] @ down.Q.mT),
        (up.Q @ left[..., :rank]) * roots[..., None, :],
        update.geometry,
    )


def fold_with_mean_gates(model: nn.Module, run: Callable[[], object]) -> Mapping[str, LowRankUpdate]:
    """Return the updates of a model's adapters, where every token gets its router's mean gates.

    Args:
        model: A model with one adapter on its layers.
        run: Runs the model on the texts that the mean is taken over.
    """
    means = {module: _MeanGates() for module in model.modules() if isinstance(module, Router)}
    hooks = [router.register_forward_hook(mean.add) for router, mean in means.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    updates: dict[str, LowRankUpdate] = {}
    for path, _, adapter in adapters_in(model):
        router = adapter.router
        updates[path] = fold(adapter) if router is None else fold_with_gates(adapter, means[router].value())
    return updates


@final
class _MeanGates:
    """The mean of a router's gates over all tokens, gathered by a forward hook."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, _router: nn.Module, _inputs: Any, gates: Tensor) -> None:
        """Add the gates of one batch."""
        flat = gates.detach().double().flatten(0, -2)
        self._sum = flat.sum(0) if self._sum is None else self._sum + flat.sum(0)
        self._tokens += len(flat)

    def value(self) -> Tensor:
        """Return the mean gate of each head."""
        assert self._sum is not None, "every router runs in a pass of its model"
        return self._sum / self._tokens
