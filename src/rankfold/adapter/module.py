"""The arithmetic of one adapter."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankfold.adapter.geometry import Geometry
from rankfold.factors import Factor


@final
class LearnedScale(nn.Module):
    """One trained multiplier for one adapter, starting at 1 (TLoRA; Islam, 2025, eq. 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))

    def forward(self) -> Float[Tensor, " 1"]:
        """Return the multiplier."""
        return self.value


@final
class Adapter(nn.Module):
    r"""The change of one layer: $\Delta y = s \cdot U C V \, dropout(x)$.

    An adapter has no parameters of its own, only factors; a factor may serve several adapters. One that is
    detached (`is_detached`) changes the output as before, but none of its factors learns from it and nothing
    is kept for their gradients.

    Args:
        down: V, rank x in_features.
        up: U, out_features x rank_up.
        geometry: Kind and sizes of the base layer.
        core: C, rank_up x rank, if any.
        scaling: The fixed multiplier s.
        scale: A trained multiplier beside it, if any.
        input_dropout: Dropout of what enters, or the identity.
        output_dropout: Dropout of what leaves, or the identity.
    """

    def __init__(  # noqa: PLR0913 (the parts of the formula)
        self,
        down: Factor,
        up: Factor,
        *,
        geometry: Geometry,
        core: Factor | None = None,
        scaling: float = 1.0,
        scale: LearnedScale | None = None,
        input_dropout: nn.Module | None = None,
        output_dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.down, self.core, self.up, self.scale = down, core, up, scale
        self.geometry = geometry
        self.scaling = scaling
        self.strength = 1.0
        self.is_detached = False
        self.input_dropout = input_dropout or nn.Identity()
        self.output_dropout = output_dropout or nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the trained numbers, which frozen factors follow."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Return the change of the base layer's output.

        Args:
            x: The base layer's input, in the adapter's dtype; tokens for an embedding.
        """
        dtype = self.dtype
        code = self.geometry.project(x, self._used(self.down).to(dtype), self.input_dropout)
        if self.core is not None:
            code = self.geometry.mix(code, self._used(self.core).to(dtype))
        # The code has rank features where the output has out_features: the cheaper place to scale.
        code = self._scaled(code)
        return self.output_dropout(self.geometry.expand(code, self._used(self.up).to(dtype)))

    def delta_weight(self) -> Tensor:
        """Return the change of the base weight, in its shape, in float32 at least, without dropout."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        matrix = self.down().to(dtype)
        if self.core is not None:
            matrix = self.core().to(dtype) @ matrix
        return self.geometry.as_base_weight(self.up().to(dtype) @ self._scaled(matrix))

    def _scaled(self, tensor: Tensor) -> Tensor:
        multiplier = self.scaling * self.strength
        if multiplier != 1:
            tensor = tensor * multiplier
        return tensor if self.scale is None else tensor * self._used(self.scale)

    def _used(self, part: Factor | LearnedScale) -> Tensor:
        value: Tensor = part()
        return value.detach() if self.is_detached else value
