"""Base class of all factors, their initial values, and checks of torch modes around them."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from rankfold.errors import SpecError, unknown_name
from rankfold.seeding import random_matrix


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


Initial = Literal["kaiming", "lecun", "islam", "zeros"]
"""How a factor starts.

`kaiming`: variance 1/(3 cols), PEFT's start of LoRA. `lecun`: variance 1/cols (TLoRA+, section 3.2). `islam`:
variance 1/(3 rows), which is what the code of TLoRA draws, since it stores its factors transposed. `zeros`:
all zero.
"""

INITIALS: tuple[Initial, ...] = get_args(Initial)


def standard_deviation(initial: Initial, rows: int, cols: int) -> float:
    """Return the standard deviation of an entry of a `rows` x `cols` factor.

    Raises:
        SpecError: If `initial` is none of `INITIALS`.
    """
    match initial:
        case "kaiming":
            return 1 / math.sqrt(3 * cols)
        case "lecun":
            return 1 / math.sqrt(cols)
        case "islam":
            return 1 / math.sqrt(3 * rows)
        case "zeros":
            return 0.0
        case _:
            raise unknown_name("initial value", initial, INITIALS)


def initial_matrix(
    initial: Initial, rows: int, cols: int, *, seed: int, name: str
) -> Float[Tensor, "{rows} {cols}"]:
    """Return a float32 matrix on the CPU; `kaiming` is uniform as in PEFT, the others are normal."""
    return random_matrix(
        rows,
        cols,
        seed=seed,
        name=name,
        std=standard_deviation(initial, rows, cols),
        distribution="uniform" if initial == "kaiming" else "normal",
    )


# Torch has no public names for these two queries.
_C, _FORWARD_AD = cast(Any, torch)._C, cast(Any, forward_ad)


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is under way.

    Neither can go through an `autograd.Function` that defines only its values and its gradients.
    """
    return bool(_C._are_functorch_transforms_active() or _FORWARD_AD._current_level >= 0)


def is_lasting(tensor: Tensor) -> bool:
    """Return whether a tensor that was made just now may be kept for later.

    One that was made in a dry run (`FakeTensorMode`), an export or a transform has no values outside of it.
    """
    return type(tensor) is Tensor and not is_transformed()
