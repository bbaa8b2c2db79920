"""Fold an adapter into plain LoRA by algebra: two thin matrices, without a decomposition."""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from rankfold.adapter.geometry import Conv2d, Geometry, Matrices
from rankfold.adapter.module import Adapter
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import AdapterFileError, NotExactError
from rankfold.factors import LowRank, LowRankSpec

_LINALG: Any = torch.linalg  # torch leaves its functions untyped


@final
@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """The update of a base weight as a product of two thin matrices, its scaling included.

    For a parameter with experts both are stacks, with the experts on an axis in front.

    Args:
        down: [*experts, rank, in_features].
        up: [*experts, out_features, rank].
        geometry: Type and sizes of the base layer.
    """

    down: Float[Tensor, "*experts rank in_features"]
    up: Float[Tensor, "*experts out_features rank"]
    geometry: Geometry

    @property
    def rank(self) -> int:
        """The inner width."""
        return self.down.shape[-2]

    @property
    def file_rank(self) -> int:
        """The rank in a file of PEFT's LoRA, where each group of a convolution has its own."""
        return self.rank * (self.geometry.groups if isinstance(self.geometry, Conv2d) else 1)

    def matrix(self) -> Float[Tensor, "*experts out_features in_features"]:
        """Return the update as a matrix, or as those of all experts, in float64."""
        return self.up.double() @ self.down.double()

    def to(self, dtype: torch.dtype) -> "LowRankUpdate":
        """Return a copy with both matrices in a dtype."""
        # A copy always, since layers that share a factor share its memory, and a file must not.
        return LowRankUpdate(self.down.to(dtype, copy=True), self.up.to(dtype, copy=True), self.geometry)

    def to_finite(self, name: str, dtype: torch.dtype) -> "LowRankUpdate":
        """Return a copy in a dtype that holds its values.

        Args:
            name: The layer's name, for the error.
            dtype: The dtype of the copy.

        Raises:
            NotExactError: If a value is not finite there.
        """
        update = self.to(dtype)
        if not (update.down.isfinite().all() and update.up.isfinite().all()):
            word = str(dtype).removeprefix("torch.")
            raise NotExactError(
                f"'{name}' has values that are not finite in {word}; export in bf16 or fp32, or, if they "
                "are not finite in the adapter either, train it again."
            )
        return update


def check_update(name: str, down: Tensor, up: Tensor, geometry: Geometry) -> LowRankUpdate:
    """Return the two matrices that a file holds for a layer as its update.

    Raises:
        AdapterFileError: If their sizes are not those of the layer.
    """
    stack, rank = stack_of(geometry), down.shape[-2]
    down_shape, up_shape = (*stack, rank, geometry.in_features), (*stack, geometry.out_features, rank)
    if down.shape != down_shape or up.shape != up_shape or not rank:
        raise AdapterFileError(
            f"the file has '{name}' as {tuple(up.shape)} times {tuple(down.shape)}, which does not fit a "
            f"layer of {geometry.in_features} in, {geometry.out_features} out; export the adapter again."
        )
    return LowRankUpdate(down, up, geometry)


def stack_of(geometry: Geometry) -> tuple[int, ...]:
    """Return the axes of a layer's update in front of its matrices: that of the experts, or none."""
    experts = geometry.experts if isinstance(geometry, Matrices) else None
    return () if experts is None else (experts,)


def folding_obstacle(spec: AdapterSpec) -> str | None:
    """Return the reason, as a clause, that no plain LoRA equals adapters of a spec; None where one does.

    Every factor is a matrix, whether it is trained, relayed, shared, seeded or taken from the base weight,
    and so are cores and scales: their product is exact. Only gates are not: they differ from token to token.
    """
    if spec.router is None:
        return None
    source = {"code": "the layer's own code", "input": "its input"}[spec.router.reads]
    return (
        f"its router weighs {spec.most_heads} heads by {source}, differently for every token, so no weight "
        "equals it"
    )


def exact_rank(spec: AdapterSpec, name: str = "this adapter") -> int:
    """Return the rank of the plain LoRA that equals adapters of a spec.

    Args:
        spec: The spec of a layer.
        name: The layer's name, for the error.

    Raises:
        NotExactError: If no plain LoRA of any rank equals them.
    """
    obstacle = folding_obstacle(spec)
    if obstacle is not None:
        raise NotExactError(
            f"cannot fold '{name}' exactly: {obstacle}; serve it with rankfold, or approximate it "
            "with --compress-rank, which measures the error."
        )
    inner = spec.core.inner if isinstance(spec.core, LowRankSpec) else spec.rank
    return min(spec.rank, spec.up_rank, inner)


@torch.no_grad()
def fold(adapter: Adapter) -> LowRankUpdate:
    """Return the update of an adapter as a product of two matrices, in float64.

    A core goes into its thinner side, which decides the rank; one that is itself a product is split between
    both. Each entry of a factor is the value that the adapter computes with.

    Raises:
        NotExactError: If a router weighs the heads.
    """
    adapter.check_is_a_weight("this adapter")
    down, up = adapter.down().double(), adapter.up().double()
    match adapter.core:
        case None:
            pass
        case LowRank(left=left, right=right) if left.shape[-1] < min(left.shape[-2], right.shape[-1]):
            down, up = right.double() @ down, up @ left.double()
        case core:
            matrix = core().double()
            if core.rows <= core.cols:
                down = matrix @ down
            else:
                up = up @ matrix
    return _update(down, up * _multiplier(adapter), adapter.geometry)


@torch.no_grad()
def unfolded_update(adapter: Adapter) -> LowRankUpdate:
    """Return the adapter's own formula in float64: U s and C V, whichever side is thinner.

    The error of a folded or compressed update is measured against it.

    Raises:
        NotExactError: If a router weighs the heads.
    """
    adapter.check_is_a_weight("this adapter")
    down = adapter.down().double()
    if adapter.core is not None:
        down = adapter.core().double() @ down
    return _update(down, adapter.up().double() * _multiplier(adapter), adapter.geometry)


def _update(down: Tensor, up: Tensor, geometry: Geometry) -> LowRankUpdate:
    """Return an update; a factor that experts share is repeated for each of them."""
    stack = stack_of(geometry)
    return LowRankUpdate(down.expand(*stack, *down.shape[-2:]), up.expand(*stack, *up.shape[-2:]), geometry)


@torch.no_grad()
def fold_with_gates(adapter: Adapter, gates: Float[Tensor, " heads"]) -> LowRankUpdate:
    """Return the update of an adapter with a router where every token gets the same gates, in float64.

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
    up = adapter.up().double() * _multiplier(adapter)
    return LowRankUpdate(down.reshape(-1, adapter.down.cols), up, adapter.geometry)


def _multiplier(adapter: Adapter) -> float | Tensor:
    """Return all scalings of an adapter as one factor of its up matrix."""
    multiplier = adapter.scaling * adapter.strength
    return multiplier if adapter.scale is None else multiplier * adapter.scale().double()


def relative_error(update: LowRankUpdate, reference: LowRankUpdate) -> float:
    """Return the Frobenius norm of the difference over that of `reference`; 0 where both are zero.

    Neither matrix is formed: the norm of U V is that of R_U R_V', from the QR decompositions of U and V'.
    """
    down = torch.cat([update.down.double(), reference.down.double()], dim=-2)
    up = torch.cat([update.up.double(), -reference.up.double()], dim=-1)
    size = _product_norm(reference.down.double(), reference.up.double())
    error = _product_norm(down, up)
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size


def _product_norm(down: Tensor, up: Tensor) -> float:
    return frobenius(_LINALG.qr(up).R @ _LINALG.qr(down.mT).R.mT)


def frobenius(matrix: Tensor) -> float:
    """Return the Frobenius norm; of several matrices, that of all of them together."""
    return _LINALG.vector_norm(matrix).item()
