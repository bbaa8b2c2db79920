"""Frozen numbers of PEFT's methods, drawn again from their seed: bit for bit, where possible anywhere.

A uniform draw is 24 random bits, equal everywhere, times the width, plus the lower end. Torch rounds after
each of these steps or only once, by the processor's instructions: both ways are written here, and a recipe
says which one the numbers came from. Normal draws go through logarithms and cosines that differ from
processor to processor; nothing is promised of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor

from rankfold.store.tensors import TensorEntry

STRICT = ConfigDict(extra="forbid", strict=True)
"""How a recipe is read: every field there, of its own type, and no other."""

MOST_DRAWS = 1 << 27
"""How many numbers a recipe may draw; a larger tensor is kept, so that no file can ask for endless work."""

Drawn = Literal["float32", "bfloat16", "float16"]
"""The type in which numbers were drawn."""

FLOATS: Mapping[Drawn, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@final
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class UniformDraw:
    """VeRA's and PVeRA's projections: He's uniform distribution.

    Args:
        tensors: The place of the tensor in its file.
        seed: Of the generator.
        skip: Numbers drawn before.
        fused: Whether width and lower end were applied in one rounding.
        kind: Names this recipe in a file.
    """

    tensors: tuple[int, ...]
    seed: int
    skip: int
    fused: bool
    kind: Literal["uniform"] = "uniform"
    portable: ClassVar[bool] = True

    def make(self, entries: Sequence[TensorEntry]) -> list[Tensor]:
        """Return the numbers."""
        (rows, columns) = entries[0].shape
        bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns))
        generator = _generator_after(self.seed, self.skip)
        return [_uniform(rows * columns, bound, generator, "float32", fused=self.fused)]


@final
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class BasisDraw:
    """RandLoRA's bases [rows, bases, columns]: uniform, one after another, over their standard deviation.

    Args:
        tensors: The place of the tensor in its file.
        seed: Of the generator.
        skip: Numbers drawn before.
        fused: Whether width and lower end were applied in one rounding.
        drawn: The type in which they were drawn.
        spread: The standard deviation, as `float.hex` writes it: a sum, whose order is no one's promise.
        kind: Names this recipe in a file.
    """

    tensors: tuple[int, ...]
    seed: int
    skip: int
    fused: bool
    drawn: Drawn
    spread: str
    kind: Literal["basis"] = "basis"
    portable: ClassVar[bool] = True

    def make(self, entries: Sequence[TensorEntry]) -> list[Tensor]:
        """Return the numbers."""
        (entry,) = entries
        basis = self.unscaled(entry)
        return [basis / torch.tensor(float.fromhex(self.spread), dtype=basis.dtype)]

    def unscaled(self, entry: TensorEntry) -> Tensor:
        """Return the numbers before the division."""
        rows, bases, columns = entry.shape
        # torch's `kaiming_uniform_` with a = √5, as PEFT calls it.
        gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))
        bound = math.sqrt(3.0) * (gain / math.sqrt(columns))
        generator = _generator_after(self.seed, self.skip)
        flat = _uniform(rows * bases * columns, bound, generator, self.drawn, fused=self.fused)
        return flat.view(bases, rows, columns).transpose(0, 1).contiguous()


@final
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class SparseDraw:
    """RandLoRA's sparse bases: −1, 0 and 1 by chance, over their standard deviation.

    Args:
        tensors: The place of the tensor in its file.
        seed: Of the generator.
        skip: Numbers drawn before.
        share: One in so many is not zero, as `float.hex` writes it.
        spread: The standard deviation, as `float.hex` writes it.
        kind: Names this recipe in a file.
    """

    tensors: tuple[int, ...]
    seed: int
    skip: int
    share: str
    spread: str
    kind: Literal["sparse"] = "sparse"
    portable: ClassVar[bool] = True

    def make(self, entries: Sequence[TensorEntry]) -> list[Tensor]:
        """Return the numbers."""
        (entry,) = entries
        return [self.unscaled(entry) / torch.tensor(float.fromhex(self.spread))]

    def unscaled(self, entry: TensorEntry) -> Tensor:
        """Return the signs before the division."""
        check_count(entry.numbers)
        unit = torch.rand(entry.shape, generator=_generator_after(self.seed, self.skip))
        edge = 1 / (2 * float.fromhex(self.share))
        return (unit > 1 - edge).float() - (unit < edge).float()


@final
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class NormalDraw:
    """TinyLoRA's projections [count, rank, rank], each from its seed; only a like processor draws them again.

    Args:
        tensors: The places of the tensors in their file.
        seeds: Of the generator, for each.
        kind: Names this recipe in a file.
    """

    tensors: tuple[int, ...]
    seeds: tuple[int, ...]
    kind: Literal["normal"] = "normal"
    portable: ClassVar[bool] = False

    def make(self, entries: Sequence[TensorEntry]) -> list[Tensor]:
        """Return the numbers."""
        check_count(sum(entry.numbers for entry in entries))
        return [
            torch.normal(0.0, 1.0 / entry.shape[-1] ** 0.5, entry.shape, generator=_generator_after(seed, 0))
            for entry, seed in zip(entries, self.seeds, strict=True)
        ]


def check_count(count: int) -> int:
    """Return how many numbers are to be drawn.

    Raises:
        ValueError: If that is too many.
    """
    if not 0 <= count <= MOST_DRAWS:
        raise ValueError(f"{count:,} numbers are to be drawn, and {MOST_DRAWS:,} are allowed")
    return count


def _generator_after(seed: int, skip: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    if skip:
        torch.rand(check_count(skip), generator=generator)
    return generator


def _uniform(count: int, bound: float, generator: torch.Generator, drawn: Drawn, *, fused: bool) -> Tensor:
    """Return what `uniform_(-bound, bound)` gives on a processor with, or without, fused multiply and add."""
    unit = torch.rand(check_count(count), generator=generator)
    high = torch.tensor(bound, dtype=torch.float32)
    low = -high
    width = high - low
    # Product and sum are exact in double precision, so that the first is one rounding and the second two.
    once = (unit.double() * width.double() + low.double()).float()
    dtype = FLOATS[drawn]
    numbers = (once if fused else unit * width + low).to(dtype)
    # The upper end does not belong to the distribution, and rounding can reach it.
    return torch.where(numbers == high.to(dtype), low.to(dtype), numbers)
