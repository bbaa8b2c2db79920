"""Frozen places of PEFT's methods, drawn again from their seed: integers, the same on every processor."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal, final

import numpy as np
import torch
from pydantic import with_config
from torch import Tensor

from rankfold.store.draws import STRICT, check_count
from rankfold.store.tensors import TensorEntry


@final
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class BalancedPlaces:
    """UniLoRA's indices into its one vector, each number used equally often, and the scales of that.

    Args:
        tensors: The places in their file: indices, in the order in which they were dealt, then their scales.
        seed: Of numpy's generator.
        length: How many numbers the vector has.
        kind: Names this recipe in a file.
    """

    tensors: tuple[int, ...]
    seed: int
    length: int
    kind: Literal["balanced"] = "balanced"
    portable: ClassVar[bool] = True

    def make(self, entries: Sequence[TensorEntry]) -> list[Tensor]:
        """Return the indices, then the scales."""
        sizes = [entry.numbers for entry in entries[: len(entries) // 2]]
        dealt = self.deal(sum(sizes))
        counts = torch.bincount(dealt, minlength=self.length).float()
        # One over the root in two roundings, as torch's `rsqrt` is on every processor.
        scales = 1 / counts.sqrt()
        indices = [dealt[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
        return [*indices, *(scales[part] for part in indices)]

    def deal(self, count: int) -> Tensor:
        """Return the indices of all layers in one row."""
        generator = np.random.default_rng(self.seed)
        each, remaining = divmod(check_count(count), check_count(self.length))
        dealt = np.repeat(np.arange(self.length), each)
        if remaining:
            dealt = np.concatenate([dealt, generator.choice(self.length, size=remaining, replace=False)])
        generator.shuffle(dealt)
        return torch.as_tensor(dealt)


@final
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class OffDiagonalPlaces:
    """FRoD's places [2, count] beside the diagonal of a square, one square after another.

    Args:
        tensors: The places of the tensors in their file.
        seed: Of the generator.
        sides: The side of each square.
        kind: Names this recipe in a file.
    """

    tensors: tuple[int, ...]
    seed: int
    sides: tuple[int, ...]
    kind: Literal["off_diagonal"] = "off_diagonal"
    portable: ClassVar[bool] = True

    def make(self, entries: Sequence[TensorEntry]) -> list[Tensor]:
        """Return rows and columns of each."""
        check_count(sum(side * side for side in self.sides))
        generator = torch.Generator().manual_seed(self.seed)
        made: list[Tensor] = []
        for entry, side in zip(entries, self.sides, strict=True):
            places = _permutation(side * (side - 1), generator)[: entry.shape[1]]
            rows, columns = places // (side - 1), places % (side - 1)
            made.append(torch.stack([rows, columns + (columns >= rows)]))
        return made


@final
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class RandomMask:
    """SHiRA's places [2, count] of the weights that it trains.

    Args:
        tensors: The place of the tensor in its file.
        seed: Of the generator.
        rows: Of the weight.
        columns: Of the weight.
        kind: Names this recipe in a file.
    """

    tensors: tuple[int, ...]
    seed: int
    rows: int
    columns: int
    kind: Literal["mask"] = "mask"
    portable: ClassVar[bool] = True

    def make(self, entries: Sequence[TensorEntry]) -> list[Tensor]:
        """Return rows and columns, in the order of the weight."""
        generator = torch.Generator().manual_seed(self.seed)
        places = _permutation(self.rows * self.columns, generator)[: entries[0].shape[1]].sort().values
        return [torch.stack([places // self.columns, places % self.columns])]


def _permutation(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(check_count(count), generator=generator)
