"""The diagonal factor: a square core with parameters on its diagonal only."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankfold.errors import SpecError, unknown_name
from rankfold.factors.base import Factor, shard_with_block


@final
@dataclass(frozen=True, slots=True)
class DiagonalSpec:
    """Description of a `Diagonal` factor.

    Args:
        initial: `zeros` or `ones`.

    Raises:
        SpecError: If `initial` is neither.
    """

    initial: Literal["zeros", "ones"] = "zeros"
    kind: Literal["diagonal"] = "diagonal"

    def __post_init__(self) -> None:
        """Check the initial value."""
        if self.initial not in ("zeros", "ones"):
            raise unknown_name("initial value of a diagonal core", self.initial, ("zeros", "ones"))

    @property
    def starts_at_zero(self) -> bool:
        """Whether the matrix is zero at the start."""
        return self.initial == "zeros"

    def build(self, rows: int, cols: int, experts: int | None = None) -> "Diagonal":
        """Return the factor, not yet reset."""
        if rows != cols:
            raise SpecError(f"a diagonal core cannot join rank {cols} to {rows}; give both sides one rank.")
        return Diagonal(rows, initial=self.initial, experts=experts)

    def parameter_count(self, rows: int, cols: int) -> int:
        """Return how many parameters are trained, and stored."""
        return rows


@final
class Diagonal(Factor):
    """diag(d) with d trained: the middle factor of AdaLoRA (Zhang et al., 2023, eq. 3).

    Cost: one parameter a rank, trained and stored.

    Args:
        rank: Rows and columns.
        initial: `zeros` or `ones`.
        experts: How many matrices there are, if there are several.
    """

    def __init__(
        self, rank: int, *, initial: Literal["zeros", "ones"] = "zeros", experts: int | None = None
    ) -> None:
        super().__init__(rank, rank, experts)
        self.initial = initial
        # One axis, by which optimisers know what is no matrix.
        self.weight = nn.Parameter(torch.zeros((experts or 1) * rank))
        shard_with_block(self)

    def forward(self) -> Float[Tensor, "*experts {self.rows} {self.cols}"]:
        """Return the diagonal matrix."""
        return torch.diag_embed(self.weight.view(*self.stack, self.rows))

    @torch.no_grad()
    def reset(self, *, seed: int, name: str) -> None:
        """Fill the diagonal."""
        self.weight.fill_(0.0 if self.initial == "zeros" else 1.0)
