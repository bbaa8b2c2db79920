"""Tensors as bytes: a table of names, types and shapes, and the values one after another without a gap."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, groupby
from math import prod
from typing import final

import torch
from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types that a tensor may have, by the names that safetensors gives them."""

MOST_NUMBERS = 1 << 48

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_DIMENSIONS = 16
_MOST_LETTERS = 1024
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f]|^[/\\]|^[A-Za-z]:|(^|[/\\])\.{1,2}([/\\]|$)")


@dataclass(frozen=True)
class TensorEntry:
    """The entry of one tensor in the table: its name, type and shape.

    Args:
        name: Its key.
        dtype: A key of `DTYPES`.
        shape: Its sides.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def numbers(self) -> int:
        """The number of its values."""
        return prod(self.shape)

    @cached_property
    def bytes(self) -> int:
        """The bytes of its values."""
        return self.numbers * DTYPES[self.dtype].itemsize

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "TensorEntry":
        """Describe a tensor.

        Raises:
            AdapterFileError: If its name, type or shape cannot be stored.
        """
        return cls.read([name, _NAMES.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape)])

    @classmethod
    def read(cls, values: JsonValue) -> "TensorEntry":
        """Read `[name, dtype, shape]`.

        Raises:
            AdapterFileError: If it is anything else, or of a type or size that no tensor may have.
        """
        match values:
            case [str() as name, str() as dtype, list() as shape]:
                check_name(name)
            case _:
                raise _wrong("an entry is not [name, dtype, shape]")
        if dtype not in DTYPES:
            raise _wrong(f"'{name}' has the unknown type '{dtype[:40]}'")
        sides = tuple(side for side in shape if type(side) is int and side >= 0)
        size = prod(max(side, 1) for side in sides)
        if len(sides) != len(shape) or len(sides) > _MOST_DIMENSIONS or size > MOST_NUMBERS:
            raise _wrong(f"'{name}' has the impossible shape {str(shape)[:80]}")
        return cls(name, dtype, sides)

    def to_json(self) -> list[JsonValue]:
        """Return `[name, dtype, shape]`."""
        return [self.name, self.dtype, list(self.shape)]


def check_name(name: str) -> None:
    """Refuse a name that could be taken for a path, or that no program prints.

    Raises:
        AdapterFileError: If it is empty, too long, has control letters, or reads like a path elsewhere.
    """
    if not name or len(name) > _MOST_LETTERS or _FORBIDDEN.search(name):
        raise _wrong(f"{name[:60]!r} is no name")


def bytes_of(tensor: Tensor) -> bytes:
    """Return the values of a tensor in their order, least significant byte first."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def copies_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the tensors that equal an earlier one in type, shape and bytes, with the name of that one.

    Constant tensors do not count: factors that begin as zeros are equal without being copies.
    """
    firsts: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    copies: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = (str(tensor.dtype), tuple(tensor.shape), sha256(bytes_of(tensor)).digest())
        first = firsts.setdefault(key, name)
        if first != name and not _is_constant(tensor):
            copies[name] = first
    return copies


def _is_constant(tensor: Tensor) -> bool:
    flat = tensor.reshape(-1)
    return bool((flat == flat[:1]).all())


@final
class Cutter:
    """Cuts payloads of one table into tensors; worked out once, since many adapters have the same table.

    Args:
        entries: The tensors of a payload, in its order.
    """

    def __init__(self, entries: Sequence[TensorEntry]) -> None:
        self._runs: list[_Run] = []
        begin = 0
        for dtype, group in groupby(entries, key=lambda entry: DTYPES[entry.dtype]):
            run = _Run(dtype, begin, list(group))
            self._runs.append(run)
            begin = run.end
        self.bytes = begin

    def cut(self, memory: bytearray) -> dict[str, Tensor]:
        """Return the tensors, which share the memory and may be written to.

        Args:
            memory: As many bytes as the table asks for.
        """
        tensors: dict[str, Tensor] = {}
        for run in self._runs:
            tensors |= run.cut(memory)
        return tensors


@final
class _Run:
    """Tensors of one type, side by side."""

    def __init__(self, dtype: torch.dtype, begin: int, entries: Sequence[TensorEntry]) -> None:
        self._dtype = dtype
        self._begin = begin
        self._count = sum(entry.numbers for entry in entries)
        self.end = begin + self._count * dtype.itemsize
        offsets = accumulate((entry.numbers for entry in entries), initial=0)
        self._slices = [
            (entry.name, entry.shape, torch.empty(entry.shape, device="meta").stride(), offset)
            for entry, offset in zip(entries, offsets, strict=False)
        ]

    def cut(self, memory: bytearray) -> dict[str, Tensor]:
        flat = self._flat(memory)
        return {name: flat.as_strided(shape, stride, offset) for name, shape, stride, offset in self._slices}

    def _flat(self, memory: bytearray) -> Tensor:
        if not self._count:
            return torch.empty(0, dtype=self._dtype)
        begin = self._begin
        if begin % self._dtype.itemsize:
            memory, begin = memory[begin : self.end], 0
        return torch.frombuffer(memory, dtype=self._dtype, count=self._count, offset=begin)


def _wrong(reason: str) -> AdapterFileError:
    return AdapterFileError(f"the table of tensors is wrong ({reason}); save the adapter again.")
