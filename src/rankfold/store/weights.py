"""A safetensors file as tensors and back, byte for byte.

The file is taken apart here and not by its library because the bytes must come back whatever version of the
library is installed by then. A header that is not spelled as the library spells it is stored as it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import cast, final

from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError
from rankfold.store.strict_json import MOST_BYTES, parse
from rankfold.store.tensors import Cutter, TensorEntry, bytes_of

PREFIX_BYTES = 8
_ALIGNMENT = 8
_METADATA = "__metadata__"


@final
@dataclass(frozen=True)
class Layout:
    """The header of a weights file: order, types, shapes and metadata of its tensors, without their values.

    Args:
        entries: In the order of their values in the file.
        metadata: The texts in the header beside the tensors, if any.
        header: The header's own bytes, if its spelling does not follow from the rest.
    """

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str] | None = None
    header: bytes | None = None

    def header_bytes(self) -> bytes:
        """Return the file's beginning, up to the values."""
        header = self.header if self.header is not None else _spell(self.entries, self.metadata)
        return len(header).to_bytes(PREFIX_BYTES, "little") + header

    @cached_property
    def cutter(self) -> Cutter:
        """A cutter of the file's values into tensors."""
        return Cutter(self.entries)

    @property
    def payload_bytes(self) -> int:
        """The bytes of the values."""
        return self.cutter.bytes


def split(data: bytes) -> tuple[Layout, dict[str, Tensor]]:
    """Take a safetensors file apart.

    Args:
        data: The whole file.

    Raises:
        AdapterFileError: If it is damaged, has gaps, or an unknown type.
    """
    layout, begin = _read_layout(data)
    return layout, layout.cutter.cut(bytearray(memoryview(data)[begin:]))


def join(layout: Layout, tensors: Mapping[str, Tensor]) -> bytes:
    """Return the safetensors file that `split` took apart."""
    return layout.header_bytes() + b"".join(bytes_of(tensors[entry.name]) for entry in layout.entries)


def read_layout(header: bytes) -> Layout:
    """Read the header of a safetensors file, without its length and the values.

    Raises:
        AdapterFileError: If it is damaged or has gaps.
    """
    values = parse(header)
    if not isinstance(values, dict):
        raise _damage_error("its header is no object")
    metadata = _read_metadata(values.pop(_METADATA, None))
    spans = sorted((_read_entry(*item) for item in values.items()), key=itemgetter(0, 1))
    end = 0
    for begin, stop, entry in spans:
        if begin != end or stop - begin != entry.bytes:
            raise _damage_error(f"'{entry.name}' lies at {begin} to {stop}")
        end = stop
    entries = tuple(entry for _, _, entry in spans)
    usual = _spell(entries, metadata)
    return Layout(entries, metadata, None if usual == header else header)


def _read_layout(data: bytes) -> tuple[Layout, int]:
    size = int.from_bytes(data[:PREFIX_BYTES], "little")
    begin = PREFIX_BYTES + size
    if size > MOST_BYTES or len(data) < begin:
        raise _damage_error("its header does not end")
    layout = read_layout(data[PREFIX_BYTES:begin])
    if layout.payload_bytes != len(data) - begin:
        raise _damage_error(
            f"its tensors take {layout.payload_bytes:,} bytes and {len(data) - begin:,} are there"
        )
    return layout, begin


def _read_entry(name: str, values: JsonValue) -> tuple[int, int, TensorEntry]:
    match values:
        case {"dtype": dtype, "shape": shape, "data_offsets": [int() as begin, int() as end], **unknown} if (
            not unknown
        ):
            return begin, end, TensorEntry.read([name, dtype, shape])
        case _:
            raise _damage_error(f"the entry of '{name[:60]}' is wrong")


def _read_metadata(values: JsonValue) -> dict[str, str] | None:
    if values is None:
        return None
    if not isinstance(values, dict) or not all(isinstance(text, str) for text in values.values()):
        raise _damage_error("its metadata is not text")
    return cast("dict[str, str]", values)


def _spell(entries: tuple[TensorEntry, ...], metadata: Mapping[str, str] | None) -> bytes:
    """Return the header as the library writes it: compact, in the order of the values, filled with spaces."""
    values: dict[str, object] = {} if metadata is None else {_METADATA: dict(metadata)}
    begin = 0
    for entry in entries:
        end = begin + entry.bytes
        values[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _damage_error(reason: str) -> AdapterFileError:
    return AdapterFileError(
        f"the weights file is damaged ({reason}); copy it again or save the adapter again."
    )
