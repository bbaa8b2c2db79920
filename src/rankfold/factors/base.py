"""Base class of all factors, their initial values, and checks of torch modes around them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from rankfold.errors import SpecError, unknown_name
from rankfold.seeding import random_matrix


class Factor(nn.Module, ABC):
    """A matrix of `rows` x `cols`, however it is parametrised. Call the factor to get the matrix.

    For experts it is as many matrices in one tensor, each with parameters of its own.

    Calling goes through `nn.Module.__call__` on purpose: offloading and sharding hang their work on it, and
    would be missed by an attribute access. Every parameter of a factor is trained; what is frozen is not a
    parameter but a seed.

    Args:
        rows: Outputs of the factor.
        cols: Inputs of the factor.
        experts: How many matrices there are, on an axis in front; None for one without that axis.

    Raises:
        SpecError: If `rows` or `cols` is less than one.
    """

    def __init__(self, rows: int, cols: int, experts: int | None = None) -> None:
        super().__init__()
        if rows < 1 or cols < 1:
            raise SpecError(f"a factor of {rows} x {cols} has no entries; give both sides at least 1.")
        self.rows = rows
        self.cols = cols
        self.experts = experts

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes in front of rows and columns: none, or that of the experts."""
        return () if self.experts is None else (self.experts,)

    @property
    def is_frozen(self) -> bool:
        """Whether the factor has nothing to train."""
        return next(self.parameters(), None) is None

    @abstractmethod
    def forward(self) -> Float[Tensor, "*experts {self.rows} {self.cols}"]:
        """Return the matrix, or those of all experts, on the factor's device."""

    @abstractmethod
    def reset(self, *, seed: int, name: str) -> None:
        """Set the initial values, which depend on `seed` and `name` alone."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Return the size for `repr`."""
        return " x ".join(map(str, (*self.stack, self.rows, self.cols)))

    if TYPE_CHECKING:  # `nn.Module.__call__` is typed as Any; a factor's call is its forward.

        def __call__(self) -> Tensor:
            """Return the matrix."""
            ...


Side = Literal["down", "up"]
"""Where a factor stands in an adapter: at the input or at the output."""


class FixedFactor(Factor):
    """A frozen matrix that is taken from elsewhere when the adapter is built.

    Like a seeded factor it has no parameter and no entry in a state dict, and is float32 whatever the model's
    dtype.
    """

    origin: ClassVar[str]
    """Where the values come from, for the error of a factor without any."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__(rows, cols)
        # The values as they were taken, and those on the module's device: none come back from the meta one.
        self._values: Tensor | None = None
        self._matrix: Tensor | None = None

    def take(self, values: Tensor) -> None:
        """Take the first rows and columns of a matrix, which is not copied, onto the default device.

        Raises:
            SpecError: If it has fewer.
        """
        if values.shape[0] < self.rows or values.shape[1] < self.cols:
            raise SpecError(
                f"a factor of {self.rows} x {self.cols} is taken from {self.origin}, which has "
                f"{values.shape[0]} x {values.shape[1]} there; give a smaller r, or leave its layer out."
            )
        self._values = values[: self.rows, : self.cols]
        self._matrix = self._values.to(torch.empty(0).device)

    def forward(self) -> Float[Tensor, "{self.rows} {self.cols}"]:
        """Return the matrix in float32.

        Raises:
            SpecError: If there was nothing to take it from.
        """
        if self._matrix is None:
            raise SpecError(f"a factor has no values: it is taken from {self.origin}.")
        return self._matrix

    def reset(self, *, seed: int, name: str) -> None:
        """Do nothing: the matrix does not depend on a seed."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's signature)
        if self._values is not None and self._matrix is not None:
            # Only the device may change: in another dtype it would be another matrix.
            device = torch.device("cpu") if self._matrix.is_meta else self._matrix.device
            self._matrix = self._values.to(fn(torch.empty(0, device=device)).device)
        return self


Initial = Literal["kaiming", "lecun", "islam", "unit", "zeros"]
"""How a factor starts.

`kaiming`: variance 1/(3 cols), PEFT's start of LoRA. `lecun`: variance 1/cols (TLoRA+, section 3.2). `islam`:
variance 1/(3 rows), which is what the code of TLoRA draws, since it stores its factors transposed. `unit`:
variance 1 by the larger side, so that the directions of either side have length one. `zeros`: all zero.
"""

INITIALS: tuple[Initial, ...] = get_args(Initial)


def shard_with_block(module: nn.Module) -> None:
    """Let fully sharded training put a module into the unit of its block, and not into one of its own.

    PEFT's policy for FSDP makes a unit of every trained module that has a `weight` and no children. A unit's
    weight is there during its own call only, and adapters use it afterwards; so the module gets a child.
    """
    module.add_module("block", nn.Identity())


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
        case "unit":
            return 1 / math.sqrt(max(rows, cols))
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


def stack_experts(make: Callable[[str], Tensor], name: str, experts: int | None) -> Tensor:
    """Return the matrix of a name, or those of all experts, each from a name of its own.

    Args:
        make: Returns the matrix of a name.
        name: Name of the factor.
        experts: How many there are; None for one matrix.
    """
    if experts is None:
        return make(name)
    return torch.stack([make(f"{name}.{expert}") for expert in range(experts)])


# Torch has no public names for these two queries.
_C, _FORWARD_AD = cast(Any, torch)._C, cast(Any, forward_ad)


def is_transformed() -> bool:
    """Return whether a transform of `torch.func`, forward-mode differentiation or a trace is under way.

    None of them can go through an `autograd.Function` that defines only its values and its gradients.
    """
    return bool(
        _C._are_functorch_transforms_active()
        or _FORWARD_AD._current_level >= 0
        or _C._get_tracing_state() is not None
    )


def is_lasting(tensor: Tensor) -> bool:
    """Return whether a tensor that was made just now may be kept for later.

    One that was made in a dry run (`FakeTensorMode`), an export or a transform has no values outside of it.
    """
    return type(tensor) is Tensor and not is_transformed()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products on a device keep the dtype of their operands."""
    # The meta device has none to switch off, and torch raises where it is asked to.
    has_one = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if has_one else nullcontext()
