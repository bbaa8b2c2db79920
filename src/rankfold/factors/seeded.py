"""The frozen factor: a random matrix kept as a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, final
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from rankfold.errors import SpecError
from rankfold.factors.base import (
    Factor,
    Initial,
    initial_matrix,
    is_lasting,
    stack_experts,
    standard_deviation,
)


@final
@dataclass(frozen=True, slots=True)
class SeededSpec:
    """Description of a `Seeded` factor.

    Args:
        initial: Distribution of the entries.

    Raises:
        SpecError: If `initial` is unknown, or is `zeros`: a frozen zero matrix would silence the adapter for
            ever.
    """

    initial: Initial = "kaiming"
    kind: Literal["seeded"] = "seeded"

    def __post_init__(self) -> None:
        """Check the initial value."""
        if standard_deviation(self.initial, 1, 1) == 0:
            raise SpecError(
                "a seeded factor cannot start at 'zeros', since it never changes; choose 'kaiming'."
            )

    @property
    def starts_at_zero(self) -> bool:
        """Never: a frozen zero is refused."""
        return False

    def build(self, rows: int, cols: int, experts: int | None = None) -> "Seeded":
        """Return the factor, not yet reset."""
        return Seeded(rows, cols, initial=self.initial, experts=experts)

    def parameter_count(self, rows: int, cols: int) -> int:
        """Return how many parameters are trained, and stored."""
        return 0  # the seed stands for all of them


_MATRICES: WeakValueDictionary[tuple[object, ...], Tensor] = WeakValueDictionary()
"""The matrices that are in use, so that adapters of one seed on one model have one between them."""


@final
class Seeded(Factor):
    """A frozen random matrix that is derived from its seed and name whenever it is needed, and never stored.

    The matrix is float32 whatever the model's dtype: rounding it to bfloat16 and back would give other
    weights than the file promises. It has no parameter, so nothing can set it to trainable, and no entry in a
    state dict.

    Reference: LoRA-FA (Zhang et al., 2023), section 3, and TLoRA (Islam, 2025), eq. 2, whose outer factors
        are frozen.
    Cost: nothing trained, nothing stored, rows x cols in memory.

    Args:
        rows: Outputs of the factor.
        cols: Inputs of the factor.
        initial: Distribution of the entries.
        experts: How many matrices there are, if there are several.
    """

    anchor: Tensor

    def __init__(
        self, rows: int, cols: int, *, initial: Initial = "kaiming", experts: int | None = None
    ) -> None:
        super().__init__(rows, cols, experts)
        self.initial: Initial = initial
        self.seed = 0
        self.name = ""
        self._matrix: Tensor | None = None
        # An empty buffer follows the module from device to device; the matrix follows the buffer.
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    def forward(self) -> Float[Tensor, "*experts {self.rows} {self.cols}"]:
        """Return the matrix in float32."""
        matrix = self._matrix
        if matrix is None or matrix.device != self.anchor.device:
            matrix = self._materialise()
        return matrix

    def reset(self, *, seed: int, name: str) -> None:
        """Take another seed or name, hence another matrix; on the meta device it waits until it is needed."""
        self.seed, self.name = seed, name
        self._matrix = None
        if not self.anchor.is_meta:
            self._materialise()

    def _materialise(self) -> Float[Tensor, "*experts {self.rows} {self.cols}"]:
        """Return the matrix, made anew, and keep it where it can be kept."""
        # The first call may be in inference mode, but training after it needs an ordinary tensor.
        key = (self.initial, self.rows, self.cols, self.experts, self.seed, self.name, self.anchor.device)
        matrix = _MATRICES.get(key)
        if matrix is None:
            with torch.inference_mode(mode=False):
                make = partial(initial_matrix, self.initial, self.rows, self.cols, seed=self.seed)
                matrix = stack_experts(lambda name: make(name=name), self.name, self.experts)
                matrix = matrix.to(self.anchor.device)
            if not is_lasting(matrix):
                return matrix
            _MATRICES[key] = matrix
        self._matrix = matrix
        return matrix

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's signature)
        # A meta tensor cannot be moved, so the anchor is made anew; only its device matters.
        device = torch.device("cpu") if self.anchor.is_meta else self.anchor.device
        self.anchor = fn(torch.empty(0, device=device))
        self._follow_anchor()
        return self

    def _follow_anchor(self) -> None:
        """Make the matrix where the anchor is now: compiled code cannot draw it."""
        if not self.anchor.is_meta and (self._matrix is None or self._matrix.device != self.anchor.device):
            self._materialise()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the derived matrix out of copies and pickles."""
        return {**self.__dict__, "_matrix": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the matrix of a copy."""
        super().__setstate__(state)  # pyright: ignore[reportUnknownMemberType] (untyped in torch)
        self._follow_anchor()
