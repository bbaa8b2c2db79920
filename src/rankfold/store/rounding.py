"""Round an adapter to fewer bytes: to another floating-point type, or to int8 or int4 with a scale a block.

An adapter in int8 or int4 is again a `SavedAdapter`, which packed files, stores and exports hold like any
other: a rounded tensor has its steps (one signed byte a number, or two numbers a byte) and a second tensor
with its scales, and the metadata has the original types. `restore` goes back; whoever opens an adapter gets
it restored. A number is its step times its scale, one product in float32, and so the same on every machine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from rankfold.errors import AdapterFileError
from rankfold.store.adapter import SavedAdapter
from rankfold.store.tensors import DTYPES, TensorEntry
from rankfold.store.weights import Layout

Dtype = Literal["fp32", "fp16", "bf16", "int8", "int4"]

FLOATS: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The floating-point types that an adapter can be rounded to, as the command line names them."""


@final
@dataclass(frozen=True, slots=True)
class Grid:
    """A type of integers with a scale for each block of numbers.

    Args:
        name: As the command line names it; also part of the names of scales and of the metadata.
        bits: Bits of a number.
        block: How many numbers share one scale.
        scale: The type of a scale, one that holds every finite number of the adapter's types nearly.
        keeps_routers: Whether routers stay as they are: a small change of theirs chooses other heads.
    """

    name: Literal["int8", "int4"]
    bits: int
    block: int
    scale: torch.dtype
    keeps_routers: bool

    @property
    def is_bytewise(self) -> bool:
        """Whether a step takes a byte of its own; otherwise two share one."""
        return self.bits == 8  # noqa: PLR2004 (a byte)

    @property
    def largest(self) -> int:
        """The largest step; the smallest is its negative."""
        return 2 ** (self.bits - 1) - 1

    @property
    def scales(self) -> str:
        """The end of the name of the tensor with the scales of a rounded one."""
        return f".{self.name}_scales"

    @property
    def types(self) -> str:
        """The key of the metadata with the original type of each tensor, or `-` where it was not rounded."""
        return f"rankfold.{self.name}"

    def blocks(self, numbers: int) -> int:
        """Return how many blocks, and scales, so many numbers have."""
        return -(-numbers // self.block)  # whole numbers: those of a hostile file have no end

    def takes(self, entry: TensorEntry) -> bool:
        """Whether a tensor is rounded: real numbers that take less room then, and no router that is kept."""
        if not DTYPES[entry.dtype].is_floating_point or (self.keeps_routers and _ROUTER in entry.name):
            return False
        small = -(-entry.numbers * self.bits // 8) + self.scale.itemsize * self.blocks(entry.numbers)
        return small < entry.bytes


GRIDS: Mapping[str, Grid] = {
    "int8": Grid("int8", bits=8, block=64, scale=torch.float32, keeps_routers=False),
    "int4": Grid("int4", bits=4, block=32, scale=torch.bfloat16, keeps_routers=True),
}
"""The integer types that an adapter can be rounded to."""

_ROUTER = ".rankfold_router."
_EXACT = "-"
_DIGITS = 10  # of one side of a shape


def round_adapter(adapter: SavedAdapter, dtype: Dtype) -> SavedAdapter:
    """Return an adapter with its floating-point tensors rounded.

    Args:
        adapter: The adapter.
        dtype: A floating-point type, which the tensors then have; or `int8` or `int4`, from which `restore`
            gives rounded numbers in the original types. Integers, and tensors that would not become smaller,
            are kept as they are; `int4` keeps routers too.

    Raises:
        AdapterFileError: If a value is not finite or too large, or the adapter is in int8 or int4 already.
    """
    check_exact(adapter)
    grid = GRIDS.get(dtype)
    if grid is None:
        tensors = {name: _to_float(name, tensor, dtype) for name, tensor in adapter.tensors.items()}
        rounded = _with_tensors(adapter, tensors, adapter.layout.metadata)
        return rounded.with_digest_of(rounded)
    tensors: dict[str, Tensor] = {}
    types: list[str] = []
    for entry in adapter.layout.entries:
        name, tensor = entry.name, adapter.tensors[entry.name]
        if grid.takes(entry):
            tensors[name], tensors[name + grid.scales] = _to_steps(name, tensor, grid)
            types.append(_spell_type(entry, grid))
        else:
            tensors[name] = tensor
            types.append(_EXACT)
    rounded = _with_tensors(
        adapter, tensors, {**(adapter.layout.metadata or {}), grid.types: " ".join(types)}
    )
    # The digest is that of the file which a reader gets.
    return rounded.with_digest_of(restore(rounded))


def restore(adapter: SavedAdapter) -> SavedAdapter:
    """Return an adapter in int8 or int4 with rounded numbers in the original types; any other as it is.

    Raises:
        AdapterFileError: If the types, the scales and the tensors do not fit.
    """
    grid = grid_of(adapter)
    if grid is None:
        return adapter
    metadata = dict(adapter.layout.metadata or {})
    types = metadata.pop(grid.types).split()
    scales = {name: tensor for name, tensor in adapter.tensors.items() if name.endswith(grid.scales)}
    names = [name for name in adapter.tensors if name not in scales]
    if len(types) != len(names):
        raise _contradiction()
    tensors: dict[str, Tensor] = {}
    for name, text in zip(names, types, strict=True):
        tensors[name] = adapter.tensors[name]
        if text != _EXACT:
            tensors[name] = _from_steps(tensors[name], text, scales.pop(name + grid.scales, None), grid)
    if scales:
        raise _contradiction()
    return _with_tensors(adapter, tensors, metadata or None)


def grid_of(adapter: SavedAdapter) -> Grid | None:
    """Return the grid that an adapter was rounded to and not restored from; None for any other.

    Raises:
        AdapterFileError: If it has the types of two.
    """
    grids = [grid for grid in GRIDS.values() if grid.types in (adapter.layout.metadata or {})]
    if len(grids) > 1:
        raise _contradiction()
    return grids[0] if grids else None


def check_exact(adapter: SavedAdapter) -> None:
    """Check that an adapter is not in int8 or int4.

    Raises:
        AdapterFileError: If it is, or has a tensor with a name that is reserved for scales.
    """
    if grid := grid_of(adapter):
        raise AdapterFileError(
            f"{adapter.title} is in {grid.name} already; unpack it with `rankfold unpack` first."
        )
    endings = tuple(grid.scales for grid in GRIDS.values())
    for name in adapter.tensors:
        if name.endswith(endings):
            raise AdapterFileError(
                f"{adapter.title} has a tensor '{name}', and this ending is for scales of packed files; "
                "rename it."
            )


def relative_error(exact: SavedAdapter, rounded: SavedAdapter) -> float:
    """Return the largest relative error of a tensor: RMS of its change over RMS of its values."""
    errors = (_rms_error(tensor, rounded.tensors[name]) for name, tensor in exact.tensors.items())
    return max(errors, default=0.0)


def _rms_error(exact: Tensor, rounded: Tensor) -> float:
    if not exact.is_floating_point():
        return 0.0
    wide = exact.double()
    is_finite = wide.isfinite()  # what is not finite is kept as it is, and has no error
    wide, rounded = wide[is_finite], rounded.double()[is_finite]
    size = wide.square().sum().sqrt().item()
    return (rounded - wide).square().sum().sqrt().item() / size if size else 0.0


def _to_float(name: str, tensor: Tensor, dtype: Dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(FLOATS[dtype])
    # Eight-bit types do not know which of their numbers are finite.
    if not torch.equal(narrow.isfinite(), tensor.double().isfinite()):
        raise AdapterFileError(f"'{name}' has values too large for {dtype}; keep more bits.")
    return narrow


def _to_steps(name: str, tensor: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the steps and the scale of each block; in int8 the steps have the tensor's shape."""
    numbers = tensor.reshape(-1).to(torch.float32)
    if not numbers.isfinite().all():
        raise AdapterFileError(f"'{name}' has values that {grid.name} cannot hold; keep more bits.")
    blocks = pad(numbers, (0, -len(numbers) % grid.block)).view(-1, grid.block)
    scales = (blocks.abs().amax(dim=1, keepdim=True) / grid.largest).to(grid.scale)
    # A block of zeros has no scale, nor has one whose largest number is too small for it.
    steps = (blocks / scales).nan_to_num(nan=0.0).round().clamp(-grid.largest, grid.largest).to(torch.int8)
    steps = steps.view(-1)[: len(numbers)]
    steps = steps.reshape(tensor.shape) if grid.is_bytewise else _join_halves(steps)
    return steps, scales.view(-1)


def _from_steps(steps: Tensor, text: str, scales: Tensor | None, grid: Grid) -> Tensor:
    """Return the numbers of steps.

    Args:
        steps: In the form of `_to_steps`.
        text: Type, and for int4 the shape.
        scales: One for each block.
        grid: That of the steps.
    """
    dtype, shape = _read_type(text, steps, grid)
    numbers = math.prod(shape)
    is_whole = steps.dtype == torch.int8 if grid.is_bytewise else _is_joined(steps, numbers)
    if (
        scales is None
        or not is_whole
        or scales.dtype != grid.scale
        or scales.shape != (grid.blocks(numbers),)
    ):
        raise _contradiction()
    flat = steps.reshape(-1) if grid.is_bytewise else _split_halves(steps)[:numbers]
    values = flat.float() * scales.float().repeat_interleave(grid.block)[:numbers]
    return values.to(dtype).reshape(shape)


def _spell_type(entry: TensorEntry, grid: Grid) -> str:
    """Return the original type as the metadata has it: `F32`, or with the shape `F32:8x384` for int4."""
    return entry.dtype if grid.is_bytewise else f"{entry.dtype}:{'x'.join(map(str, entry.shape))}"


def _read_type(text: str, steps: Tensor, grid: Grid) -> tuple[torch.dtype, tuple[int, ...]]:
    name, colon, shape = text.partition(":")
    if name not in DTYPES or not DTYPES[name].is_floating_point or bool(colon) != (not grid.is_bytewise):
        raise _contradiction()
    if not colon:
        return DTYPES[name], tuple(steps.shape)
    sides = shape.split("x") if shape else []
    if not all(side.isascii() and side.isdigit() and len(side) < _DIGITS for side in sides):
        raise _contradiction()
    return DTYPES[name], tuple(map(int, sides))


def _join_halves(steps: Tensor) -> Tensor:
    """Return steps of four bits as bytes, the first of two in the lower half."""
    low, high = pad(steps, (0, len(steps) % 2)).view(-1, 2).to(torch.uint8).unbind(dim=1)
    return (low & 15) | (high << 4)


def _split_halves(joined: Tensor) -> Tensor:
    """Return the steps of `_join_halves`, one more where their number was odd."""
    halves = torch.stack((joined & 15, joined >> 4), dim=1).view(-1).to(torch.int8)
    return halves - 16 * (halves > 7).to(torch.int8)  # noqa: PLR2004 (two's complement of four bits)


def _is_joined(steps: Tensor, numbers: int) -> bool:
    return steps.dtype == torch.uint8 and steps.shape == (-(-numbers // 2),)


def _with_tensors(
    adapter: SavedAdapter, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> SavedAdapter:
    entries = tuple(TensorEntry.of(name, tensor) for name, tensor in tensors.items())
    return replace(adapter, layout=Layout(entries, metadata), tensors=tensors)


def _contradiction() -> AdapterFileError:
    return AdapterFileError("the rounded adapter contradicts itself; pack the adapter again.")
