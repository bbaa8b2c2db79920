"""What a factor is: a module that yields one matrix."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from rankfold.errors import SpecError


class Factor(nn.Module, ABC):
    """A matrix of `rows` x `cols`, however it is parametrised. Call the factor to get the matrix.

    Calling goes through `nn.Module.__call__` on purpose: offloading and sharding hang their work on it, and
    would be missed by an attribute access. Every parameter of a factor is trained; what is frozen is not a
    parameter but a seed.

    Args:
        rows: Outputs of the factor.
        cols: Inputs of the factor.

    Raises:
        SpecError: If `rows` or `cols` is less than one.
    """

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        if rows < 1 or cols < 1:
            raise SpecError(f"a factor of {rows} x {cols} has no entries; give both sides at least 1.")
        self.rows = rows
        self.cols = cols

    @property
    def is_frozen(self) -> bool:
        """Whether the factor has nothing to train."""
        return next(self.parameters(), None) is None

    @abstractmethod
    def forward(self) -> Float[Tensor, "{self.rows} {self.cols}"]:
        """Return the matrix, on the factor's device."""

    @abstractmethod
    def reset(self, *, seed: int, name: str) -> None:
        """Set the initial values, which depend on `seed` and `name` alone."""

    def extra_repr(self) -> str:
        """Return the size for `repr`."""
        return f"{self.rows} x {self.cols}"

    if TYPE_CHECKING:  # `nn.Module.__call__` is typed as Any; a factor's call is its forward.

        def __call__(self) -> Tensor:
            """Return the matrix."""
            ...
