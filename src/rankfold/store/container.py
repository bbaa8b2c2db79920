"""The container: one file with a compressed header, the values of tensors, and a checksum over all.

    magic 8 · version u32 · bytes of the header u32 · bytes of its JSON u32 · bytes of the payload u64
    header · payload · checksum 16

Numbers are little-endian. The payload is the tensors' values in the order of their table, without a gap:
there are no offsets that could lie. Every check stands before the memory that it saves.
"""

import hashlib
import re
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError
from rankfold.store.strict_json import compress, expand
from rankfold.store.tensors import Cutter, TensorEntry, bytes_of

MAGIC = b"\x93RKFOLD\n"
VERSION = 1
DIGEST_BYTES = 16

_PREFIX = struct.Struct("<8sIIIQ")
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_KEYS = {"kind", "header", "tensors", "blobs"}


@final
@dataclass(frozen=True, slots=True, eq=False)
class Container:
    """The content of one file.

    Args:
        type: The format of the content, such as "adapter".
        header: Everything but the tensors, as JSON values.
        tensors: By name; their order is kept.
    """

    type: str
    header: Mapping[str, JsonValue]
    tensors: Mapping[str, Tensor]


def encode(container: Container) -> bytes:
    """Return a container as bytes; equal containers give equal bytes.

    Raises:
        AdapterFileError: If a name, a type or the header could not be read again.
    """
    entries = [TensorEntry.of(name, tensor) for name, tensor in container.tensors.items()]
    values: dict[str, JsonValue] = {
        "kind": container.type,
        "header": dict(container.header),
        "tensors": [entry.to_json() for entry in entries],
        "blobs": [],  # of an earlier use; always empty
    }
    _check_header(values)
    header, text_bytes = compress(values)
    payload_bytes = sum(entry.bytes for entry in entries)
    prefix = _PREFIX.pack(MAGIC, VERSION, len(header), text_bytes, payload_bytes)
    content = b"".join([prefix, header, *map(bytes_of, container.tensors.values())])
    return content + checksum(content)


def decode(data: bytes | memoryview) -> Container:
    """Read a container from its bytes.

    Raises:
        AdapterFileError: If it is no container, of another version, damaged in any byte, or inconsistent.
    """
    view = memoryview(data)
    header_bytes, text_bytes = _read_prefix(view, len(view))
    if checksum(view[:-DIGEST_BYTES]) != bytes(view[-DIGEST_BYTES:]):
        raise _damage_error("its checksum is wrong")
    begin = _PREFIX.size + header_bytes
    payload = view[begin:-DIGEST_BYTES]
    type_, header, entries = _check_header(expand(view[_PREFIX.size : begin], text_bytes))
    cutter = Cutter(entries)
    if cutter.bytes != len(payload):
        raise _damage_error(f"its tensors take {cutter.bytes:,} bytes and {len(payload):,} are there")
    return Container(type_, header, cutter.cut(bytearray(payload)))


def read(path: Path) -> Container:
    """Read a container's file.

    Raises:
        AdapterFileError: As `decode`, with the name of the file; also if there is none.
    """
    with naming(path), path.open("rb") as file:
        # Before its bytes are in memory, the file has to be one of ours, of the length in its prefix.
        _read_prefix(memoryview(file.read(_PREFIX.size)), path.stat().st_size)
        file.seek(0)
        return decode(file.read())


def is_container(path: Path) -> bool:
    """Whether a path is a file that begins like a container.

    Raises:
        AdapterFileError: If it cannot be read.
    """
    if not path.is_file():
        return False
    with naming(path), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Put the name of a file before the message of an error in it.

    Raises:
        AdapterFileError: If the block raises one, or an OSError.
    """
    try:
        yield
    except AdapterFileError as error:
        raise AdapterFileError(f"'{path}': {error}") from error
    except FileNotFoundError as error:
        raise AdapterFileError(f"there is no folder or file '{path}'; check its path.") from error
    except OSError as error:
        raise AdapterFileError(
            f"cannot read '{path}' ({error.strerror}); check its path and permissions."
        ) from error


def checksum(data: bytes | bytearray | memoryview) -> bytes:
    """Return the first 16 bytes of the SHA-256 of data, by which damage is found."""
    # Processors have instructions for this one.
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def _read_prefix(start: memoryview, file_bytes: int) -> tuple[int, int]:
    """Return the length of the header, compressed and as text."""
    if bytes(start[: len(MAGIC)]) != MAGIC:
        raise AdapterFileError("this is no file of rankfold; name one that `rankfold pack` wrote.")
    if len(start) < _PREFIX.size:
        raise _damage_error("it is cut off")
    _, version, header_bytes, text_bytes, payload_bytes = _PREFIX.unpack(start[: _PREFIX.size])
    if version != VERSION:
        raise AdapterFileError(
            f"the file has format {version} and this rankfold reads {VERSION}; update rankfold."
        )
    expected_bytes = _PREFIX.size + header_bytes + payload_bytes + DIGEST_BYTES
    if expected_bytes != file_bytes:
        raise _damage_error(f"it should have {expected_bytes:,} bytes and has {file_bytes:,}")
    return header_bytes, text_bytes


def _check_header(values: JsonValue) -> tuple[str, dict[str, JsonValue], tuple[TensorEntry, ...]]:
    """Return type, header and table of tensors."""
    match values:
        case {
            "kind": str() as type_,
            "header": dict() as header,
            "tensors": list() as tensors,
            "blobs": [],
        } if set(values) == _KEYS and _TYPE.fullmatch(type_):
            entries = tuple(map(TensorEntry.read, tensors))
        case _:
            raise _damage_error("its header is not one of a container")
    if len({entry.name for entry in entries}) != len(entries):
        raise _damage_error("a name stands twice in its table")
    return type_, header, entries


def _damage_error(reason: str) -> AdapterFileError:
    return AdapterFileError(f"the file is damaged ({reason}); copy it again or write it anew.")
