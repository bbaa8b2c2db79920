"""The frozen factor that is taken from the base weight: its leading singular vectors."""

from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from rankfold.errors import SpecError, unknown_name
from rankfold.factors.base import FixedFactor, Side
from rankfold.seeding import random_matrix

_LINALG: Any = torch.linalg  # torch leaves its functions untyped

Split = Literal["up", "even"]
"""Where the singular values go: to the `up` factor, or their roots to both."""

SPLITS: tuple[Split, ...] = get_args(Split)

EXACT_UP_TO = 1024
"""The smaller side up to which a weight is decomposed exactly; beyond, that would take too long a layer."""

# Beyond it, with these: what the factors keep of a weight is all but what the exact vectors would keep. The
# last of the vectors may still differ from the exact ones, for their singular values are nearly alike.
_OVERSAMPLING = 16
_ITERATIONS = 12


@final
@dataclass(frozen=True, slots=True)
class SvdSpec:
    """Description of an `Svd` factor.

    Args:
        split: Where the singular values go.

    Raises:
        SpecError: If `split` is unknown.
    """

    split: Split = "up"
    kind: Literal["svd"] = "svd"

    def __post_init__(self) -> None:
        """Check the field."""
        if self.split not in SPLITS:
            raise unknown_name("split of singular values", self.split, SPLITS)

    @property
    def starts_at_zero(self) -> bool:
        """Never: a base weight of zeros has nothing to take."""
        return False

    def build(self, rows: int, cols: int, experts: int | None = None) -> "Svd":
        """Return the factor, not yet taken from a weight.

        Raises:
            SpecError: If it is for several experts.
        """
        if experts is not None:
            raise SpecError(
                f"an svd factor is taken from one weight, not from those of {experts} experts; choose a "
                "method without one, or leave the experts out of target_parameters."
            )
        return Svd(rows, cols, split=self.split)

    def parameter_count(self, rows: int, cols: int) -> int:
        """Return how many parameters are trained, and stored."""
        return 0  # the base weight stands for all of them


@final
class Decomposition:
    """The leading part of a base weight's singular value decomposition, computed once for both sides.

    It is a fixed sequence of float64 operations on the CPU, with the sign of each pair of vectors fixed too:
    the same weight gives the same factors when a saved adapter is loaded again. Up to `EXACT_UP_TO` it is
    exact; for larger weights it comes from subspace iteration with a fixed start.

    Reference: Halko et al., 2011, algorithm 4.4 (subspace iteration).

    Args:
        weight: The base weight, [out_features, in_features].
        rank: How many singular vectors are wanted, at most the smaller side.

    Raises:
        SpecError: If the rank is larger than that.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        if rank > min(weight.shape):
            raise SpecError(
                f"r={rank} is more than the {min(weight.shape)} singular vectors of a weight of "
                f"{weight.shape[0]} x {weight.shape[1]}; give r at most {min(weight.shape)}."
            )
        self.left, self.values, self.right = _leading(weight.detach().to("cpu", torch.float64), rank)

    def side(self, side: Side, split: Split) -> Tensor:
        """Return U S [out_features, rank] or V [rank, in_features], or both with the root of S; float32."""
        values = self.values if split == "up" else self.values.sqrt()
        if side == "up":
            return (self.left * values).float()
        return (self.right if split == "up" else values[:, None] * self.right).float()


@final
class Svd(FixedFactor):
    """A frozen matrix of a base weight's leading singular vectors, derived when the adapter is built.

    Reference: NoRA (Lin et al., 2024): the outer factors of nested LoRA.
    Cost: nothing trained, nothing stored, rows x cols in memory.

    Args:
        rows: Outputs of the factor.
        cols: Inputs of the factor.
        split: Where the singular values go.
    """

    origin = "the base weight, and there was none; load all of the base into memory first"

    def __init__(self, rows: int, cols: int, *, split: Split = "up") -> None:
        super().__init__(rows, cols)
        self.split: Split = split


def _leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the left vectors, the values and the right vectors, largest first, from a basis of the left."""
    if weight.shape[0] > weight.shape[1]:
        basis = _orthonormal(weight @ _leading_basis(weight.T, rank))
    else:
        basis = _leading_basis(weight, rank)
    parts: tuple[Tensor, Tensor, Tensor] = _LINALG.svd(basis.T @ weight, full_matrices=False)
    lefts, values, rights = (basis @ parts[0])[:, :rank], parts[1][:rank], parts[2][:rank]
    largest = rights.gather(1, rights.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(torch.float64)
    return lefts * signs.T, values, rights * signs


def _leading_basis(weight: Tensor, rank: int) -> Tensor:
    """Return orthonormal columns that span the leading left vectors of a weight no taller than wide."""
    rows, cols = weight.shape
    if rows <= EXACT_UP_TO:
        eigenvectors: Tensor = _LINALG.eigh(weight @ weight.T).eigenvectors
        return eigenvectors[:, -rank:]
    start = random_matrix(cols, min(rank + _OVERSAMPLING, rows), seed=0, name="svd.start", std=1.0)
    basis = _orthonormal(weight @ start.to(torch.float64))
    for _ in range(_ITERATIONS):
        basis = _orthonormal(weight @ _orthonormal(weight.T @ basis))
    return basis


def _orthonormal(matrix: Tensor) -> Tensor:
    return _LINALG.qr(matrix).Q
