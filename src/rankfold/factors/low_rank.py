"""The core that is itself a product: two thin trained matrices."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankfold.errors import SpecError
from rankfold.factors.base import Factor, Initial, initial_matrix, stack_experts, standard_deviation
from rankfold.limits import MOST_RANK, check_most


@final
@dataclass(frozen=True, slots=True)
class LowRankSpec:
    """Description of a `LowRank` factor.

    Args:
        inner: Rank of the product.
        initial: How the left matrix starts; the right one starts as LoRA's down factor does.

    Raises:
        SpecError: If `inner` is less than one, or `initial` is unknown.
    """

    inner: int = 4
    initial: Initial = "zeros"
    kind: Literal["low_rank"] = "low_rank"

    def __post_init__(self) -> None:
        """Check both fields."""
        if self.inner < 1:
            raise SpecError(f"inner={self.inner} leaves a factor without entries; give inner at least 1.")
        check_most("inner", self.inner, MOST_RANK)
        standard_deviation(self.initial, 1, 1)

    @property
    def starts_at_zero(self) -> bool:
        """Whether the matrix is zero at the start."""
        return self.initial == "zeros"

    def build(self, rows: int, cols: int, experts: int | None = None) -> "LowRank":
        """Return the factor, not yet reset."""
        return LowRank(rows, cols, inner=self.inner, initial=self.initial, experts=experts)

    def parameter_count(self, rows: int, cols: int) -> int:
        """Return how many parameters are trained, and stored."""
        return self.inner * (rows + cols)


@final
class LowRank(Factor):
    """Q P with Q and P trained: the inner pair of nested LoRA (NoRA; Lin et al., 2024).

    Cost: inner x (rows + cols) trained and stored.

    Args:
        rows: Outputs of the factor.
        cols: Inputs of the factor.
        inner: Rank of the product.
        initial: How Q starts.
        experts: How many matrices there are, if there are several.
    """

    def __init__(
        self, rows: int, cols: int, *, inner: int, initial: Initial = "zeros", experts: int | None = None
    ) -> None:
        super().__init__(rows, cols, experts)
        self.initial: Initial = initial
        self.left = nn.Parameter(torch.zeros(*self.stack, rows, inner))
        self.right = nn.Parameter(torch.zeros(*self.stack, inner, cols))

    def forward(self) -> Float[Tensor, "*experts {self.rows} {self.cols}"]:
        """Return the product."""
        return self.left @ self.right

    @torch.no_grad()
    def reset(self, *, seed: int, name: str) -> None:
        """Draw both matrices; on the meta device they are left as they are."""
        if self.left.is_meta:
            return
        (rows, inner), cols = self.left.shape[-2:], self.cols
        draw_left = partial(initial_matrix, self.initial, rows, inner, seed=seed)
        draw_right = partial(initial_matrix, "kaiming", inner, cols, seed=seed)
        self.left.copy_(stack_experts(lambda part: draw_left(name=f"{part}.left"), name, self.experts))
        self.right.copy_(stack_experts(lambda part: draw_right(name=f"{part}.right"), name, self.experts))
