"""Sharing: one owner for each factor that several layers use.

A pool serves one side (down or up) of one adapter on one model. The first layer that takes a factor
owns it, which means that it registers it; the others use the same module without registering it. So
parameter counts, optimisers and files see a shared factor once, and moving or replacing its parameters can
never separate the layers that use it.
"""

from collections.abc import Callable
from functools import cached_property
from itertools import accumulate
from typing import Literal, final, get_args

from jaxtyping import Float
from torch import Tensor

from rankfold.factors.base import Factor

Share = Literal["none", "module_type", "in_features", "slice", "entries"]
"""Which layers use one factor: `none` each its own; `module_type` those whose names end alike and whose sizes
agree (ShareLoRA); `in_features` those of one input width (EffiLoRA; down side only); `slice` all of them,
each using the first rows and columns of one factor as large as the largest; `entries` all of them, each using
entries of its own of one factor as large as all together: of a relayed factor, one square for the model.
Always within one tower."""

SHARES: tuple[Share, ...] = get_args(Share)


@final
class Window(Factor):
    """A part of a larger, shared factor. Its parameters are the source's.

    Args:
        source: The factor that is looked into.
        rows: How many of its rows.
        cols: How many of its columns.
        offset: At which of its entries, counted row by row, the part begins, and goes on from entry to entry;
            None for its first rows and columns.
    """

    def __init__(self, source: Factor, rows: int, cols: int, offset: int | None = None) -> None:
        super().__init__(rows, cols)
        self.source = source
        self.offset = offset

    def forward(self) -> Float[Tensor, "{self.rows} {self.cols}"]:
        """Return the part of the source's matrix."""
        if self.offset is None:
            return self.source()[: self.rows, : self.cols]
        entries = self.source().flatten()[self.offset : self.offset + self.rows * self.cols]
        return entries.view(self.rows, self.cols)

    def reset(self, *, seed: int, name: str) -> None:
        """Do nothing: the owner resets the source."""


@final
class Pool:
    """The factors of one side of one adapter in one tower, by group of layers.

    Reserve every layer's size first: a sliced factor is as large as the largest, one of entries as all.

    Args:
        share: Which layers use one factor.
        tower: Path of the tower, part of the names of shared factors; empty in a model with a single one.
    """

    def __init__(self, share: Share, tower: str = "") -> None:
        self.share: Share = share
        self._prefix = f"shared.{tower}." if tower else "shared."
        self._sizes: dict[str, tuple[int, int]] = {}
        self._factors: dict[str, Factor] = {}

    def reserve(self, path: str, rows: int, cols: int) -> None:
        """Announce that a layer will take a factor of this size."""
        self._sizes[path] = rows, cols

    def take(
        self,
        path: str,
        rows: int,
        cols: int,
        create: Callable[[str, int, int, int | None], Factor],
        experts: int | None = None,
    ) -> tuple[Factor, Factor | None]:
        """Return the factor for a layer, and the factor it has to own, or None if another layer owns it.

        Args:
            path: The layer's path; its last part is the module type.
            rows: Outputs of the factor.
            cols: Inputs of the factor.
            create: Called with the group's name, rows, cols and experts where the group has no factor yet.
            experts: How many matrices the layer has; a factor that layers share is the same for all of them.
        """
        group, *size = self.group(path, rows, cols)
        is_first = group not in self._factors
        if is_first:
            self._factors[group] = create(group, size[0], size[1], self.stack_size(experts))
        factor = self._factors[group]
        offset = self._offsets[path] if self.share == "entries" else None
        view = factor if size == [rows, cols] else Window(factor, rows, cols, offset)
        return view, factor if is_first else None

    def stack_size(self, experts: int | None) -> int | None:
        """Return how many matrices the factor of a layer with experts holds: one if layers share it."""
        return experts if self.share == "none" else None

    def group(self, path: str, rows: int, cols: int) -> tuple[str, int, int]:
        """Return the name of a layer's group, and the size of the factor that the group uses."""
        match self.share:
            case "none":
                return path, rows, cols
            case "module_type":
                return f"{self._prefix}{path.rpartition('.')[2]}.{rows}x{cols}", rows, cols
            case "in_features":
                return f"{self._prefix}in_features.{rows}x{cols}", rows, cols
            case "slice":
                return f"{self._prefix}slice", self._most_rows, self._most_cols
            case "entries":
                entries = sum(rows * cols for rows, cols in self._sizes.values())
                return f"{self._prefix}entries", -(-entries // self._most_cols), self._most_cols

    @cached_property
    def _most_rows(self) -> int:
        return max(rows for rows, _ in self._sizes.values())

    @cached_property
    def _most_cols(self) -> int:
        return max(cols for _, cols in self._sizes.values())

    @cached_property
    def _offsets(self) -> dict[str, int]:
        """By layer, where its entries begin: in the order of the paths, whatever that of the model is."""
        paths = sorted(self._sizes)
        counts = (rows * cols for rows, cols in map(self._sizes.__getitem__, paths))
        return dict(zip(paths, accumulate(counts, initial=0), strict=False))
