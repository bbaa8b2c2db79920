"""How the two sides of an adapter meet the input and the output of the base layer.

An adapter is three matrices. What differs between a linear layer, an embedding and a convolution is only how
the down factor reads the input (`project`), how the core acts on the code in between (`mix`), and how the up
factor writes the output (`expand`); and the shape that their product has as a base weight.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


class Geometry(ABC):
    """The type and the sizes of a base layer.

    `in_features` and `out_features` are the sizes of the matrix that the adapter adds to, out_features x
    in_features.
    """

    in_features: int
    out_features: int

    @abstractmethod
    def project(self, x: Tensor, down: Tensor, dropout: nn.Module) -> Tensor:
        """Return the code of an input: down [rank, in_features] applied to it, after dropout."""

    def mix(self, code: Tensor, core: Tensor) -> Tensor:
        """Return the code after the core [rank_up, rank]; by default it acts on the last axis."""
        return functional.linear(code, core)

    def expand(self, code: Tensor, up: Tensor) -> Tensor:
        """Return up [out_features, rank_up] applied to a code, in the shape of the base layer's output.

        By default it writes the last axis: code [*batch, rank_up] to [*batch, out_features].
        """
        return functional.linear(code, up)

    @abstractmethod
    def as_base_weight(self, matrix: Tensor) -> Tensor:
        """Return a matrix [out_features, in_features] in the shape of the base layer's weight."""

    @abstractmethod
    def as_matrix(self, base_weight: Tensor) -> Tensor:
        """Return the base layer's weight as a matrix [out_features, in_features]."""


@final
@dataclass(frozen=True, slots=True)
class Linear(Geometry):
    """A linear layer; `transposed` where its weight is [in_features, out_features] (GPT-2's Conv1D)."""

    in_features: int
    out_features: int
    transposed: bool = False

    def project(self, x: Tensor, down: Tensor, dropout: nn.Module) -> Tensor:
        """Read the last axis: x [*batch, in_features] to code [*batch, rank]."""
        return functional.linear(dropout(x), down)

    def as_base_weight(self, matrix: Tensor) -> Tensor:
        """Transpose where the layer stores its weight transposed."""
        return matrix.T if self.transposed else matrix

    def as_matrix(self, base_weight: Tensor) -> Tensor:
        """Transpose where the layer stores its weight transposed."""
        return base_weight.T if self.transposed else base_weight


@final
@dataclass(frozen=True, slots=True)
class Matrices(Geometry):
    """A parameter that is no layer's weight: one matrix, or a stack of them, one for each expert.

    An adapter changes the parameter itself, since the inputs of its matrices are known only inside of the
    module that has it.

    Args:
        in_features: Columns of a matrix; rows where it is transposed.
        out_features: Rows of a matrix; columns where it is transposed.
        experts: How many matrices, on the first axis; None for one without that axis.
        transposed: Whether a matrix is [in_features, out_features], as in gpt-oss.
    """

    in_features: int
    out_features: int
    experts: int | None = None
    transposed: bool = False

    def project(self, x: Tensor, down: Tensor, dropout: nn.Module) -> Tensor:
        """Read the last axis: x [*experts, tokens, in_features] to code [*experts, tokens, rank]."""
        return dropout(x) @ down.mT

    def mix(self, code: Tensor, core: Tensor) -> Tensor:
        """Act on the last axis."""
        return code @ core.mT

    def expand(self, code: Tensor, up: Tensor) -> Tensor:
        """Write the last axis: code [*experts, tokens, rank_up] to [*experts, tokens, out_features]."""
        return code @ up.mT

    def as_base_weight(self, matrix: Tensor) -> Tensor:
        """Transpose where the parameter is transposed; a matrix for all experts is repeated."""
        stack = () if self.experts is None else (self.experts,)
        return (matrix.mT if self.transposed else matrix).expand(*stack, -1, -1)

    def as_matrix(self, base_weight: Tensor) -> Tensor:
        """Transpose where the parameter is transposed."""
        return base_weight.mT if self.transposed else base_weight

    def add_product(self, base_weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """Return base_weight + up down for every expert, in the dtype of base_weight.

        Args:
            base_weight: The parameter.
            up: [*experts, out_features, rank]; without the axis of experts it is that of all.
            down: [*experts, rank, in_features], likewise.
        """
        left, right = up.to(base_weight.dtype), down.to(base_weight.dtype)
        if self.transposed:
            left, right = right.mT, left.mT
        if self.experts is None:
            return torch.addmm(base_weight, left, right)
        return torch.baddbmm(
            base_weight, left.expand(self.experts, -1, -1), right.expand(self.experts, -1, -1)
        )


@final
@dataclass(frozen=True, slots=True)
class Embedding(Geometry):
    """An embedding; its input is one of `in_features` tokens, as if one-hot.

    The token `padding_idx`, if there is one, is not learned, as in the base layer.
    """

    in_features: int
    out_features: int
    padding_idx: int | None = None

    def project(self, x: Tensor, down: Tensor, dropout: nn.Module) -> Tensor:
        """Look up one column of down for each token: x [*batch] to code [*batch, rank]."""
        code = functional.embedding(x, down.T, padding_idx=self.padding_idx)
        # Dropout of a one-hot input drops or keeps the token as a whole.
        return code * dropout(code.new_ones(x.shape)).unsqueeze(-1)

    def as_base_weight(self, matrix: Tensor) -> Tensor:
        """Transpose: an embedding stores one row a token."""
        return matrix.T

    def as_matrix(self, base_weight: Tensor) -> Tensor:
        """Transpose: an embedding stores one row a token."""
        return base_weight.T


@final
@dataclass(frozen=True, slots=True)
class Conv2d(Geometry):
    """A convolution; in_features counts the input channels of one group times the kernel's area."""

    in_channels: int
    out_features: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    pad_widths: tuple[int, ...]

    @property
    def in_features(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] (derived here)
        """Input channels of one group times the kernel's area."""
        height, width = self.kernel_size
        return self.in_channels // self.groups * height * width

    def project(self, x: Tensor, down: Tensor, dropout: nn.Module) -> Tensor:
        """Convolve x [batch, channels, height, width] with down as a kernel, each group alone."""
        x, padding = dropout(x), self.padding
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, self.pad_widths, mode=self.padding_mode), (0, 0)
        kernel = down.reshape(down.shape[0], self.in_channels // self.groups, *self.kernel_size)
        kernel = kernel.repeat(self.groups, 1, 1, 1)
        return functional.conv2d(x, kernel, None, self.stride, padding, self.dilation, self.groups)

    def mix(self, code: Tensor, core: Tensor) -> Tensor:
        """Act on the channels of every group."""
        return functional.conv2d(
            code, core[:, :, None, None].repeat(self.groups, 1, 1, 1), groups=self.groups
        )

    def expand(self, code: Tensor, up: Tensor) -> Tensor:
        """Write the channels, each group from its own code."""
        return functional.conv2d(code, up[:, :, None, None], groups=self.groups)

    def as_base_weight(self, matrix: Tensor) -> Tensor:
        """Fold the columns back into channels and kernel."""
        return matrix.reshape(self.out_features, self.in_channels // self.groups, *self.kernel_size)

    def as_matrix(self, base_weight: Tensor) -> Tensor:
        """Put channels and kernel into columns."""
        return base_weight.reshape(self.out_features, self.in_features)
