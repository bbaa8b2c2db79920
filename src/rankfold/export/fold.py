"""Folding: the algebra that turns an adapter into two thin matrices, without a decomposition."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from rankfold.adapter.geometry import Geometry
from rankfold.adapter.module import Adapter
from rankfold.errors import AdapterFileError, NotExactError
from rankfold.factors import LowRank


@final
@dataclass(frozen=True, slots=True)
class Folded:
    """A change of a base weight as a product, its scaling included.

    Args:
        down: [rank, in_features].
        up: [out_features, rank].
        geometry: Kind and sizes of the base layer.
    """

    down: Float[Tensor, "rank in_features"]
    up: Float[Tensor, "out_features rank"]
    geometry: Geometry

    @property
    def rank(self) -> int:
        """The inner width."""
        return self.down.shape[0]

    def matrix(self) -> Float[Tensor, "out_features in_features"]:
        """Return the change as a matrix, in float64."""
        return self.up.double() @ self.down.double()

    def rounded(self, dtype: torch.dtype) -> "Folded":
        """Return a copy of the change with both matrices in a dtype."""
        # A copy always, since layers that share a factor share its memory, and a file must not.
        return Folded(self.down.to(dtype, copy=True), self.up.to(dtype, copy=True), self.geometry)

    def stored(self, name: str, dtype: torch.dtype) -> "Folded":
        """Return a copy for a file.

        Args:
            name: What the error calls the layer.
            dtype: That of the copy.

        Raises:
            NotExactError: If a number is not finite there.
        """
        stored = self.rounded(dtype)
        if not (stored.down.isfinite().all() and stored.up.isfinite().all()):
            word = str(dtype).removeprefix("torch.")
            raise NotExactError(
                f"'{name}' has numbers that are not finite in {word}; export in bf16 or fp32, or, if they "
                "are not finite in the adapter either, train it again."
            )
        return stored


def read_product(name: str, down: Tensor, up: Tensor, geometry: Geometry) -> Folded:
    """Return what a file says of a layer.

    Raises:
        AdapterFileError: If the matrices are of other sizes than the layer.
    """
    rank = len(down)
    if down.shape != (rank, geometry.in_features) or up.shape != (geometry.out_features, rank) or not rank:
        raise AdapterFileError(
            f"the file has '{name}' as {tuple(up.shape)} times {tuple(down.shape)}, which is no change of a "
            f"layer of {geometry.in_features} in, {geometry.out_features} out; export the adapter again."
        )
    return Folded(down, up, geometry)


@torch.no_grad()
def fold(adapter: Adapter) -> Folded:
    """Return an adapter as a product of two matrices, in float64.

    A core goes into its thinner side, which decides the rank; one that is itself a product is parted between
    both. Each entry of a factor is the number that the adapter computes with.

    Raises:
        NotExactError: If a router weighs the heads.
    """
    adapter.check_is_a_weight("this adapter")
    down, up = adapter.down().double(), adapter.up().double()
    match adapter.core:
        case None:
            pass
        case LowRank(left=left, right=right) if left.shape[1] < min(left.shape[0], right.shape[1]):
            down, up = right.double() @ down, up @ left.double()
        case core:
            matrix = core().double()
            if core.rows <= core.cols:
                down = matrix @ down
            else:
                up = up @ matrix
    multiplier = adapter.scaling * adapter.strength
    if adapter.scale is not None:
        multiplier = multiplier * adapter.scale().double()
    return Folded(down, up * multiplier, adapter.geometry)
