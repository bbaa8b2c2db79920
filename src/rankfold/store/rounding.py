"""Round an adapter to fewer bytes: to another floating-point type, or to integers of 8, 4, 3 or 2 bits.

An adapter in integers is again a `SavedAdapter`, which packed files, stores and exports hold like any other:
a rounded tensor is a row of bytes, its steps and then a 16-bit scale for every 32 of them, and the metadata
has the original types. `restore` goes back; whoever opens an adapter gets it restored.

A number is its step times its scale. The step has at most 8 bits and the scale (bfloat16) 8, so the product
is exact in float32, and the same on every machine, with any number of threads and any version of torch.

In every integer type these are rounded and these are exact:

- matrices and vectors of the adapter itself are rounded, around one where they lie around one (a factor of
  the activations, as IA3 has it, that changes nothing at one), else around zero;
- matrices that are stored whole (task heads, embeddings, prompts) are rounded to 8 bits: they may hold base
  weights, of which the training has changed little;
- routers and other numbers that choose, vectors that are stored whole (biases, norms, DoRA's magnitudes),
  integers, and tensors of fewer than 8 numbers are exact.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from rankfold.errors import AdapterFileError
from rankfold.store.adapter import SavedAdapter
from rankfold.store.certificate import RoundingCertificate
from rankfold.store.tensors import DTYPES, TensorEntry
from rankfold.store.weights import Layout

Dtype = Literal["fp32", "fp16", "bf16", "int8", "int4", "int3", "int2"]

FLOATS: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The floating-point types that an adapter can be rounded to, as the command line names them."""

BLOCK = 32
"""How many numbers share one scale."""

METADATA = "rankfold.rounded"
"""The key of the metadata with the integer type, and the entry of each tensor, or `-` where it is exact."""

_SCALE_BYTES = 2
_EXACT = "-"
_DIGITS = 10  # of one side of a shape
FEWEST_NUMBERS = 8
"""A tensor of fewer numbers is not rounded to integers."""

_PACKED_STEPS = 8  # as many of any type fill whole bytes
# Clipping the largest numbers of a block costs less than coarse steps for all the others; int8 gains nothing.
_SHRINKS = (1.0, 0.9, 0.8, 0.7)
# The RMS distance from one of numbers that lie around it, and that which none of them has when rounded.
_NEAR_ONE, _FAR_FROM_ONE = 0.5, 0.9
_LEAST_AROUND_ONE = 2.0**-16

_PREFIXES = ("rankfold_", "lora_", "hada_")
_WHOLE = ("magnitude", "trainable_tokens")
_CHOOSING = ("router", "logits")


@final
@dataclass(frozen=True, slots=True)
class Grid:
    """A type of integers with a scale for each block of numbers.

    Args:
        name: As the command line and the metadata have it.
        bits: Bits of a step, 2 to 8.
    """

    name: str
    bits: int

    @property
    def largest(self) -> int:
        """The largest step; the smallest is its negative. The four steps of two bits are -3, -1, 1 and 3."""
        return 3 if self.bits == 2 else 2 ** (self.bits - 1) - 1  # noqa: PLR2004

    @property
    def bits_per_number(self) -> float:
        """Bits of a number with its share of the scale."""
        return self.bits + 8 * _SCALE_BYTES / BLOCK

    @torch.no_grad()
    def round(self, tensor: Tensor) -> Tensor:
        """Return a tensor with its numbers as they are after storing, in its own type and shape."""
        numbers = tensor.detach().reshape(-1).float()
        origin = self.origin_of(numbers)
        return (_product(*self.quantise(numbers, origin)) + origin).to(tensor.dtype).reshape(tensor.shape)

    def origin_of(self, numbers: Tensor) -> int:
        """Return one for numbers that lie around one, else zero.

        The answer for rounded numbers is the one that they were rounded with.

        Args:
            numbers: One row of float32.
        """
        distance = (numbers.double() - 1).square().mean().sqrt().item() if len(numbers) else 1.0
        if not distance < _FAR_FROM_ONE:
            return 0
        for origin in (1, 0):
            if torch.equal(_product(*self.quantise(numbers, origin)) + origin, numbers):
                return origin
        return int(distance < _NEAR_ONE)

    def quantise(self, numbers: Tensor, origin: int) -> tuple[Tensor, Tensor]:
        """Return the step of each number (float32, a whole number) and the scale of each block (float32).

        Of a few scales each block takes the one with the smallest squared error. The largest number of a
        block has the largest step with any of them, so numbers that were rounded are rounded to themselves.

        Args:
            numbers: One row of float32.
            origin: Zero or one, around which they are rounded.
        """
        numbers = numbers - origin
        # Below float32's normal numbers there is zero on some machines, so here on all; around one, sums of
        # products with smaller scales would not be exact.
        least_scale = _LEAST_AROUND_ONE if origin else torch.finfo(torch.float32).tiny
        blocks = pad(numbers, (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
        is_number = pad(torch.ones_like(numbers), (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
        top = blocks.abs().amax(dim=1, keepdim=True) / self.largest
        best_steps, best_scales, least = torch.zeros_like(blocks), torch.zeros_like(top), None
        for shrink in _SHRINKS if self.bits < 8 else _SHRINKS[:1]:  # noqa: PLR2004
            scales = (top * shrink).to(torch.bfloat16).float()
            scales = scales.where(scales >= least_scale, 0.0)
            steps = self._nearest(blocks / scales).where(scales > 0, 0.0)
            errors = ((steps * scales - blocks) * is_number).square().sum(dim=1, keepdim=True)
            better = torch.ones_like(scales, dtype=torch.bool) if least is None else errors < least
            best_steps, best_scales = steps.where(better, best_steps), scales.where(better, best_scales)
            least = errors if least is None else errors.where(better, least)
        return best_steps.view(-1)[: len(numbers)], best_scales.view(-1)

    def _nearest(self, ratios: Tensor) -> Tensor:
        steps = 2 * (ratios / 2).floor() + 1 if self.bits == 2 else ratios.round()  # noqa: PLR2004
        return steps.clamp(-self.largest, self.largest)

    def pack(self, steps: Tensor) -> Tensor:
        """Return steps as bytes: one after another, each from its lowest bit, in two's complement."""
        codes = (steps.long() - 1) // 2 if self.bits == 2 else steps.long()  # noqa: PLR2004
        codes = pad(codes & (2**self.bits - 1), (0, -len(codes) % _PACKED_STEPS)).view(-1, _PACKED_STEPS)
        words = (codes << self.bits * torch.arange(_PACKED_STEPS)).sum(dim=1, keepdim=True)
        parts = (words >> 8 * torch.arange(self.bits)) & 255
        return parts.to(torch.uint8).view(-1)[: self.packed_bytes(len(steps))]

    def unpack(self, data: Tensor, numbers: int) -> Tensor:
        """Return so many steps (float32) of `pack`."""
        parts = pad(data, (0, -len(data) % self.bits)).view(-1, self.bits).long()
        words = (parts << 8 * torch.arange(self.bits)).sum(dim=1, keepdim=True)
        codes = (words >> self.bits * torch.arange(_PACKED_STEPS)) & (2**self.bits - 1)
        codes = codes.view(-1)[:numbers]
        codes = codes - ((codes >> self.bits - 1) << self.bits)
        return (2 * codes + 1 if self.bits == 2 else codes).float()  # noqa: PLR2004

    def packed_bytes(self, numbers: int) -> int:
        """Return the bytes of so many steps."""
        return -(-numbers * self.bits // 8)

    def scale_bytes(self, numbers: int) -> int:
        """Return the bytes of the scales of so many numbers."""
        return _SCALE_BYTES * _blocks(numbers)


GRIDS: Mapping[str, Grid] = {f"int{bits}": Grid(f"int{bits}", bits) for bits in (8, 4, 3, 2)}
"""The integer types that an adapter can be rounded to."""


@final
@dataclass(frozen=True, slots=True)
class RoundedEntry:
    """The entry of a rounded tensor in the metadata, such as `int4:F32:8x384` or, around one, `1+int4:…`.

    Args:
        grid: The type of its steps.
        origin: Zero or one, which is added to each product.
        dtype: The original type, a key of `DTYPES`.
        shape: The original shape.
    """

    grid: Grid
    origin: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)  # whole numbers: those of a hostile file have no end

    @property
    def step_bytes(self) -> int:
        """The bytes of its steps."""
        return self.grid.packed_bytes(self.numbers)

    @property
    def blocks(self) -> int:
        """The number of its scales."""
        return _blocks(self.numbers)

    @property
    def scale_bytes(self) -> int:
        """The bytes of its scales."""
        return self.grid.scale_bytes(self.numbers)

    def spell(self) -> str:
        """Return the entry as text."""
        origin = f"{self.origin}+" if self.origin else ""
        return f"{origin}{self.grid.name}:{self.dtype}:{'x'.join(map(str, self.shape))}"

    @classmethod
    def read(cls, text: str) -> "RoundedEntry":
        """Read an entry.

        Raises:
            AdapterFileError: If it is none.
        """
        match text.removeprefix("1+").split(":"):
            case [grid, dtype, shape] if grid in GRIDS and dtype in DTYPES:
                sides = shape.split("x") if shape else []
            case _:
                raise _contradiction()
        is_number = all(side.isascii() and side.isdigit() and len(side) < _DIGITS for side in sides)
        if not is_number or not DTYPES[dtype].is_floating_point:
            raise _contradiction()
        return cls(GRIDS[grid], int(text.startswith("1+")), dtype, tuple(map(int, sides)))

    def encode(self, name: str, tensor: Tensor) -> Tensor:
        """Return the bytes of a tensor: its steps, then its scales.

        Raises:
            AdapterFileError: If a value is not finite, or too large.
        """
        numbers = tensor.detach().cpu().reshape(-1).float()
        steps, scales = self.grid.quantise(numbers, self.origin)
        bits = scales.to(torch.bfloat16).view(torch.int16).int()
        halves = torch.stack((bits & 255, (bits >> 8) & 255), dim=1).to(torch.uint8).view(-1)
        data = torch.cat((self.grid.pack(steps), halves))
        # Twice half of the largest number may be rounded up to more than there is.
        if not numbers.isfinite().all() or not self._decode(data).isfinite().all():
            raise AdapterFileError(f"'{name}' has values that {self.grid.name} cannot hold; keep more bits.")
        return data

    def decode(self, data: Tensor) -> Tensor:
        """Return the tensor of these bytes.

        Raises:
            AdapterFileError: If they are too many or too few, or a scale or a number is none.
        """
        if data.dtype != torch.uint8 or data.shape != (self.step_bytes + self.scale_bytes,):
            raise _contradiction()
        numbers = self._decode(data)
        # Eight-bit types do not know which of their numbers are finite.
        if not numbers.float().isfinite().all():
            raise _contradiction()
        return numbers

    def _decode(self, data: Tensor) -> Tensor:
        halves = data[self.step_bytes :].int().view(-1, _SCALE_BYTES)
        bits = halves[:, 0] | halves[:, 1] << 8
        scales = (bits << 16).view(torch.float32)
        # Zero, or a normal number: some machines take the smaller ones for zero.
        if not ((bits == 0) | ((bits >= 1 << 7) & (bits < 255 << 7))).all():
            raise _contradiction()
        numbers = _product(self.grid.unpack(data[: self.step_bytes], self.numbers), scales) + self.origin
        return numbers.to(DTYPES[self.dtype]).reshape(self.shape)


def round_adapter(
    adapter: SavedAdapter, dtype: Dtype, certificate: RoundingCertificate | None = None
) -> SavedAdapter:
    """Return an adapter with its floating-point tensors rounded.

    Args:
        adapter: The adapter.
        dtype: A floating-point type, which the tensors then have; or a type of integers, from which `restore`
            gives rounded numbers in the original types. The rules above say which tensors are exact in it.
        certificate: The measured change, which goes with an adapter in integers.

    Raises:
        AdapterFileError: If a value is not finite or too large, or the adapter is in integers already.
    """
    check_exact(adapter)
    grid = GRIDS.get(dtype)
    if grid is None:
        tensors = {name: _to_float(name, tensor, dtype) for name, tensor in adapter.tensors.items()}
        narrow_adapter = _with_tensors(adapter, tensors, adapter.layout.metadata)
        return narrow_adapter.with_digest_of(narrow_adapter)
    tensors: dict[str, Tensor] = {}
    entries: list[str] = []
    grids = choose_grids(adapter.tensors, adapter.method, adapter.modules_to_save, grid)
    for name, tensor_grid in grids.items():
        tensor = adapter.tensors[name]
        if tensor_grid is None:
            tensors[name] = tensor
            entries.append(_EXACT)
        else:
            entry = _entry_of(name, tensor, tensor_grid)
            tensors[name] = entry.encode(name, tensor)
            entries.append(entry.spell())
    metadata = {**(adapter.layout.metadata or {}), METADATA: " ".join([grid.name, *entries])}
    small_adapter = _with_tensors(adapter, tensors, metadata)
    if certificate is not None:
        small_adapter = replace(small_adapter, certificate_text=certificate.to_json())
    # The digest is that of the file which a reader gets.
    return small_adapter.with_digest_of(restore(small_adapter))


def choose_grids(
    tensors: Mapping[str, Tensor], method: str, modules_to_save: Sequence[str], grid: Grid
) -> dict[str, Grid | None]:
    """Return the type that each tensor of an adapter is rounded to; None if it is exact.

    Args:
        tensors: The tensors by the names of PEFT's files.
        method: PEFT's name of the method.
        modules_to_save: Modules that are stored whole.
        grid: The type of the adapter.
    """
    prefixes = (*_PREFIXES, f"{method.lower()}_")
    modules = tuple(f".{module}." for module in modules_to_save)
    entries = (TensorEntry.of(name, tensor) for name, tensor in tensors.items())
    return {entry.name: _choose_grid(entry, prefixes, modules, grid) for entry in entries}


def _choose_grid(
    entry: TensorEntry, prefixes: tuple[str, ...], modules: tuple[str, ...], grid: Grid
) -> Grid | None:
    if not DTYPES[entry.dtype].is_floating_point or entry.numbers < FEWEST_NUMBERS:
        return None
    own_parts = [part for part in entry.name.split(".") if part.startswith(prefixes)]
    if any(word in part for part in own_parts for word in _CHOOSING):
        return None
    is_replaced = any(module in f".{entry.name}" for module in modules)
    if is_replaced or not own_parts or any(word in part for part in own_parts for word in _WHOLE):
        if len(entry.shape) < 2:  # noqa: PLR2004
            return None
        grid = GRIDS["int8"]
    size = grid.packed_bytes(entry.numbers) + grid.scale_bytes(entry.numbers)
    return grid if size < entry.bytes else None


def restore(adapter: SavedAdapter) -> SavedAdapter:
    """Return an adapter in integers with rounded numbers in the original types; any other as it is.

    Raises:
        AdapterFileError: If the entries and the tensors do not fit.
    """
    if grid_of(adapter) is None:
        return adapter
    metadata = dict(adapter.layout.metadata or {})
    del metadata[METADATA]
    tensors = {
        name: adapter.tensors[name] if entry is None else entry.decode(adapter.tensors[name])
        for name, entry in rounded_entries(adapter)
    }
    exact_types = _with_tensors(adapter, tensors, metadata or None)
    return replace(exact_types, certificate_text=None)


def rounded_entries(adapter: SavedAdapter) -> Iterator[tuple[str, RoundedEntry | None]]:
    """Yield the name of each tensor of an adapter with its entry; None for a tensor that is exact.

    Raises:
        AdapterFileError: If an entry is none, or their number is not that of the tensors.
    """
    text = (adapter.layout.metadata or {}).get(METADATA)
    texts = [_EXACT] * len(adapter.tensors) if text is None else text.split()[1:]
    if len(texts) != len(adapter.tensors):
        raise _contradiction()
    for name, text in zip(adapter.tensors, texts, strict=True):
        yield name, None if text == _EXACT else RoundedEntry.read(text)


def grid_of(adapter: SavedAdapter) -> Grid | None:
    """Return the type of integers that an adapter was rounded to and not restored from; None for any other.

    Raises:
        AdapterFileError: If there is no such type.
    """
    text = (adapter.layout.metadata or {}).get(METADATA)
    if text is None:
        return None
    grid = GRIDS.get(text.partition(" ")[0])
    if grid is None:
        raise _contradiction()
    return grid


def check_exact(adapter: SavedAdapter) -> None:
    """Check that an adapter is not in integers.

    Raises:
        AdapterFileError: If it is.
    """
    if grid := grid_of(adapter):
        raise AdapterFileError(
            f"{adapter.title} is in {grid.name} already; unpack it with `rankfold unpack` first."
        )


def relative_error(exact: SavedAdapter, other: SavedAdapter) -> float:
    """Return the largest relative error of a tensor: RMS of its change over RMS of its values."""
    errors = (tensor_error(tensor, other.tensors[name]) for name, tensor in exact.tensors.items())
    return max(errors, default=0.0)


def tensor_error(exact: Tensor, other: Tensor) -> float:
    """Return the relative error of one tensor; 0 for integers."""
    if not exact.is_floating_point():
        return 0.0
    wide = exact.double()
    is_finite = wide.isfinite()  # what is not finite is kept as it is, and has no error
    wide, other = wide[is_finite], other.double()[is_finite]
    size = wide.square().sum().sqrt().item()
    return (other - wide).square().sum().sqrt().item() / size if size else 0.0


def _entry_of(name: str, tensor: Tensor, grid: Grid) -> RoundedEntry:
    entry = TensorEntry.of(name, tensor)
    origin = grid.origin_of(tensor.detach().cpu().reshape(-1).float())
    return RoundedEntry(grid, origin, entry.dtype, entry.shape)


def _blocks(numbers: int) -> int:
    return -(-numbers // BLOCK)


def _product(steps: Tensor, scales: Tensor) -> Tensor:
    """Return each step times the scale of its block; exact."""
    return steps * scales.repeat_interleave(BLOCK)[: len(steps)]


def _to_float(name: str, tensor: Tensor, dtype: Dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(FLOATS[dtype])
    # Eight-bit types do not know which of their numbers are finite.
    if not torch.equal(narrow.isfinite(), tensor.double().isfinite()):
        raise AdapterFileError(f"'{name}' has values too large for {dtype}; keep more bits.")
    return narrow


def _with_tensors(
    adapter: SavedAdapter, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> SavedAdapter:
    entries = tuple(TensorEntry.of(name, tensor) for name, tensor in tensors.items())
    return replace(adapter, layout=Layout(entries, metadata), tensors=tensors)


def _contradiction() -> AdapterFileError:
    return AdapterFileError("the rounded adapter contradicts itself; pack the adapter again.")
