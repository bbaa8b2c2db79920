"""The dense factor: every entry is a parameter."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankfold.factors.base import (
    Factor,
    Initial,
    initial_matrix,
    shard_with_block,
    stack_experts,
    standard_deviation,
)


@final
@dataclass(frozen=True, slots=True)
class DenseSpec:
    """Description of a `Dense` factor.

    Args:
        initial: How the entries start.

    Raises:
        SpecError: If `initial` is unknown.
    """

    initial: Initial = "kaiming"
    kind: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        """Check the initial value by looking it up."""
        standard_deviation(self.initial, 1, 1)

    @property
    def starts_at_zero(self) -> bool:
        """Whether the matrix is zero at the start."""
        return self.initial == "zeros"

    def build(self, rows: int, cols: int, experts: int | None = None) -> "Dense":
        """Return the factor, not yet reset."""
        return Dense(rows, cols, initial=self.initial, experts=experts)

    def parameter_count(self, rows: int, cols: int) -> int:
        """Return how many parameters are trained, and stored."""
        return rows * cols


@final
class Dense(Factor):
    """A matrix whose entries are all trained: LoRA's own factors (Hu et al., 2022, eq. 3).

    Cost: rows x cols trained and stored.

    Args:
        rows: Outputs of the factor.
        cols: Inputs of the factor.
        initial: How the entries start.
        experts: How many matrices there are, if there are several.

    Example:
        >>> factor = Dense(4, 8)
        >>> factor.reset(seed=0, name="layer.down")
        >>> factor().shape
        torch.Size([4, 8])
    """

    def __init__(
        self, rows: int, cols: int, *, initial: Initial = "kaiming", experts: int | None = None
    ) -> None:
        super().__init__(rows, cols, experts)
        self.initial: Initial = initial
        self.weight = nn.Parameter(torch.zeros(*self.stack, rows, cols))
        shard_with_block(self)

    def forward(self) -> Float[Tensor, "*experts {self.rows} {self.cols}"]:
        """Return the trained matrix itself."""
        return self.weight

    @torch.no_grad()
    def reset(self, *, seed: int, name: str) -> None:
        """Draw the entries; a matrix on the meta device is left as it is."""
        if not self.weight.is_meta:
            make = partial(initial_matrix, self.initial, self.rows, self.cols, seed=seed)
            self.weight.copy_(stack_experts(lambda part: make(name=part), name, self.experts))
