"""The container: one file with a compressed header, the values of tensors, and a checksum over all.

    magic 8 · version u32 · bytes of the header u32 · bytes of its JSON u32 · bytes of the payload u64
    header · payload · checksum 16

Numbers are little-endian. The payload is the tensors and then the blobs, in the order of their tables,
without a gap: there are no offsets that could lie. Every check stands before the memory that it saves.
"""

import hashlib
import re
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, final

from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError
from rankfold.files import write_whole
from rankfold.store.header import compress, expand
from rankfold.store.tensors import MOST_NUMBERS, Cutter, TensorEntry, bytes_of, check_name

MAGIC = b"\x93RKFOLD\n"
VERSION = 1
DIGEST_BYTES = 16

_PREFIX = struct.Struct("<8sIIIQ")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,39}")
_KEYS = {"kind", "header", "tensors", "blobs"}


@final
@dataclass(frozen=True, slots=True, eq=False)
class Container:
    """What one file holds.

    Args:
        kind: What the content means, such as "adapter".
        header: What else is to be said, as JSON values.
        tensors: By name; their order is kept.
        blobs: Other bytes by name; they are not compressed.
    """

    kind: str
    header: Mapping[str, JsonValue]
    tensors: Mapping[str, Tensor]
    blobs: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


@final
@dataclass(frozen=True, slots=True)
class Outline:
    """What a file says about itself, known without its values.

    Args:
        kind: What the content means.
        header: What else is said.
        tensors: The table of the tensors, in the order of the payload.
        blobs: The bytes of each blob.
    """

    kind: str
    header: Mapping[str, JsonValue]
    tensors: tuple[TensorEntry, ...]
    blobs: Mapping[str, int]

    @property
    def payload_bytes(self) -> int:
        """How many bytes the tables ask for."""
        return sum(entry.bytes for entry in self.tensors) + sum(self.blobs.values())


def encode(container: Container) -> bytes:
    """Return a container as bytes; equal containers give equal bytes.

    Raises:
        AdapterFileError: If a name, a type or the header could not be read again.
    """
    entries = [TensorEntry.of(name, tensor) for name, tensor in container.tensors.items()]
    values: dict[str, JsonValue] = {
        "kind": container.kind,
        "header": dict(container.header),
        "tensors": [entry.to_json() for entry in entries],
        "blobs": [[name, len(blob)] for name, blob in container.blobs.items()],
    }
    outline = _outline(values)
    header, plain = compress(values)
    prefix = _PREFIX.pack(MAGIC, VERSION, len(header), plain, outline.payload_bytes)
    content = b"".join(
        [prefix, header, *map(bytes_of, container.tensors.values()), *container.blobs.values()]
    )
    return content + checksum(content)


def decode(data: bytes | memoryview) -> Container:
    """Read a container from its bytes.

    Raises:
        AdapterFileError: If it is no container, of another version, damaged in any byte, or not what it says.
    """
    view = memoryview(data)
    header_bytes, plain, _ = _prefix(view, len(view))
    if checksum(view[:-DIGEST_BYTES]) != bytes(view[-DIGEST_BYTES:]):
        raise _damaged("its checksum is wrong")
    begin = _PREFIX.size + header_bytes
    payload = view[begin:-DIGEST_BYTES]
    outline = _outline(expand(view[_PREFIX.size : begin], plain))
    if outline.payload_bytes != len(payload):
        raise _damaged(f"its tables ask for {outline.payload_bytes:,} bytes and {len(payload):,} are there")
    end = sum(entry.bytes for entry in outline.tensors)
    tensors = Cutter(outline.tensors).cut(bytearray(payload[:end]))
    blobs: dict[str, bytes] = {}
    for name, size in outline.blobs.items():
        blobs[name] = bytes(payload[end : end + size])
        end += size
    return Container(outline.kind, outline.header, tensors, blobs)


def read(path: Path) -> Container:
    """Read a container's file.

    Raises:
        AdapterFileError: As `decode`, with the name of the file; also if there is none.
    """
    with naming(path), path.open("rb") as file:
        # Before its bytes are in memory, the file has to be one of ours, and as long as it says.
        _prefix_of(file, path)
        file.seek(0)
        return decode(file.read())


def read_header(path: Path) -> Outline:
    """Read what a file says about itself, not its payload, and so without proof of its checksum.

    Raises:
        AdapterFileError: If there is no such file, or it cannot be a container.
    """
    with naming(path), path.open("rb") as file:
        header_bytes, plain, payload_bytes = _prefix_of(file, path)
        outline = _outline(expand(file.read(header_bytes), plain))
    if outline.payload_bytes != payload_bytes:
        raise AdapterFileError(f"'{path}' does not hold what its tables ask for; write it anew.")
    return outline


def write(path: Path, container: Container) -> None:
    """Write a container's file in one step.

    Raises:
        AdapterFileError: As `encode`.
        OSError: If it cannot be written.
    """
    write_whole(path, encode(container))


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
    """Put the name of the file before what is wrong with it.

    Raises:
        AdapterFileError: If anything is.
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
    """Return what changes when any bit of the data does."""
    # Processors have instructions for this one.
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def _prefix_of(file: BinaryIO, path: Path) -> tuple[int, int, int]:
    return _prefix(memoryview(file.read(_PREFIX.size)), path.stat().st_size)


def _prefix(start: memoryview, file_bytes: int) -> tuple[int, int, int]:
    """Return the bytes of the header, of its text, and of the payload."""
    if bytes(start[: len(MAGIC)]) != MAGIC:
        raise AdapterFileError("this is no file of rankfold; name one that `rankfold pack` wrote.")
    if len(start) < _PREFIX.size:
        raise _damaged("it is cut off")
    _, version, header_bytes, plain, payload_bytes = _PREFIX.unpack(start[: _PREFIX.size])
    if version != VERSION:
        raise AdapterFileError(
            f"the file has format {version} and this rankfold reads {VERSION}; update rankfold."
        )
    expected = _PREFIX.size + header_bytes + payload_bytes + DIGEST_BYTES
    if expected != file_bytes:
        raise _damaged(f"it should have {expected:,} bytes and has {file_bytes:,}")
    return header_bytes, plain, payload_bytes


def _outline(values: JsonValue) -> Outline:
    """Check what a header says."""
    match values:
        case {
            "kind": str() as kind,
            "header": dict() as header,
            "tensors": list() as tensors,
            "blobs": list() as blobs,
        } if set(values) == _KEYS and _KIND.fullmatch(kind):
            entries = tuple(map(TensorEntry.read, tensors))
            sizes = dict(map(_blob, blobs))
        case _:
            raise _damaged("its header is not one of a container")
    if len({entry.name for entry in entries} | set(sizes)) != len(entries) + len(blobs):
        raise _damaged("a name stands twice in its tables")
    return Outline(kind, header, entries, sizes)


def _blob(entry: JsonValue) -> tuple[str, int]:
    match entry:
        case [str() as name, int() as size] if type(size) is int and 0 <= size <= MOST_NUMBERS:
            check_name(name)
            return name, size
        case _:
            raise _damaged("an entry of its blobs is wrong")


def _damaged(reason: str) -> AdapterFileError:
    return AdapterFileError(f"the file is damaged ({reason}); copy it again or write it anew.")
