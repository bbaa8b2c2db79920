"""Many adapters as one stream, to and from wherever fsspec reaches.

    magic 8 · for each adapter: length u64, container of type "record" · 0 u64 · number of adapters u64

Before an adapter that needs a learned basis comes the basis, once, as another such container. The end says
how many adapters there were, so that a stream that was cut off is not taken for a shorter one.
"""

import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rankfold.errors import AdapterFileError, OutputExistsError, SpecError, StoreError
from rankfold.files import draft_name, whole_file
from rankfold.store.adapter import SavedAdapter
from rankfold.store.basis import TYPE as BASIS_TYPE
from rankfold.store.basis import content_of, digests_in, read_content
from rankfold.store.container import Container, decode, encode
from rankfold.store.packed import TYPE as ADAPTER_TYPE
from rankfold.store.packed import from_container, to_container
from rankfold.store.record import Record, moment_of
from rankfold.store.rounding import restore
from rankfold.store.rows import describe

MAGIC = b"\x93RKSTRM\n"
TYPE = "record"

Existing = Literal["refuse", "skip", "replace"]

_LENGTH = struct.Struct("<Q")
_BLOCK_BYTES = 1 << 20


def write_stream(url: str, adapters: Iterable[tuple[Record, SavedAdapter]], *, overwrite: bool) -> int:
    """Write adapters to a path or a URL, which appears when it is complete; return how many there were.

    Raises:
        OutputExistsError: If something is there already, or a folder.
        StoreError: If it cannot be written.
    """
    count, bases = 0, set[str]()
    with _reaching(url):
        system, path = _locate(url)
        check = partial(_check_free, system, path, url, overwrite=overwrite)
        check()
        is_local = isinstance(system, LocalFileSystem)
        writing = whole_file(Path(path), check=check) if is_local else _whole_object(system, path, check)
        with writing as file:
            file.write(MAGIC)
            for record, adapter in adapters:
                needed = [one for one in digests_in(adapter.config_values) if one not in bases]
                bases.update(needed)
                for frame in (*map(content_of, needed), encode(_frame(record, adapter))):
                    file.write(_LENGTH.pack(len(frame)) + frame)
                count += 1
            file.write(_LENGTH.pack(0) + _LENGTH.pack(count))
    return count


def read_stream(url: str) -> Iterator[tuple[Record, SavedAdapter]]:
    """Yield the adapters of a stream, one after another, each with a record that is true of it.

    The records have no checksum yet, since it is over the bytes in a store.

    Raises:
        AdapterFileError: If it is no such stream, damaged or cut off, or if a record contradicts its adapter.
        StoreError: If it cannot be read.
    """
    with _reaching(url):
        system, path = _locate(url)
        with system.open(path, "rb") as file:
            yield from _frames(cast("BinaryIO", file), url)


def _frames(file: BinaryIO, url: str) -> Iterator[tuple[Record, SavedAdapter]]:
    if file.read(len(MAGIC)) != MAGIC:
        raise AdapterFileError(
            f"'{url}' is no export of a store; name one that `rankfold store export` wrote."
        )
    count = 0
    while length := _number(file, url):
        data = _read(file, length, url)
        try:
            container = decode(data)
            if container.type == BASIS_TYPE:
                read_content(data)
                continue
            yield _read_frame(container)
        except AdapterFileError as error:
            raise AdapterFileError(f"'{url}', adapter {count + 1}: {error}") from error
        count += 1
    if _number(file, url) != count or file.read(1):
        raise _cut_off(url)


def _frame(record: Record, adapter: SavedAdapter) -> Container:
    packed = to_container(adapter)
    return Container(TYPE, {"record": record.to_dict(), "adapter": dict(packed.header)}, packed.tensors)


def _read_frame(container: Container) -> tuple[Record, SavedAdapter]:
    match dict(container.header):
        case {"record": record, "adapter": dict() as header, **rest} if container.type == TYPE and not rest:
            adapter = from_container(Container(ADAPTER_TYPE, header, container.tensors))
            restore(adapter).check_weights()
            return _check_record(Record.from_dict(record), adapter), adapter
        case _:
            raise AdapterFileError(f"it holds '{container.type}', not a record; export the store again.")


def _check_record(record: Record, adapter: SavedAdapter) -> Record:
    """Return the record that `describe` gives of an adapter, if that of the stream agrees.

    The checksum of a stream proves that nothing changed on the way, not that whoever wrote it was a store.
    """
    try:
        true = describe(
            record.name, adapter, created=moment_of(record.created), tags=record.tags, metrics=record.metrics
        )
    except SpecError as error:
        raise AdapterFileError(str(error)) from error
    for field in ("base", "method", "bytes", "created", "format"):
        claim, value = getattr(record, field), getattr(true, field)
        if claim != value:
            raise AdapterFileError(
                f"its record says {field}={claim!r}, but it is {value!r}; export the store again."
            )
    return true


def _number(file: BinaryIO, url: str) -> int:
    return _LENGTH.unpack(_read(file, _LENGTH.size, url))[0]


def _read(file: BinaryIO, length: int, url: str) -> bytes:
    """Read a number of bytes; memory grows with the bytes that are there, not with the number."""
    data = bytearray()
    while len(data) < length:
        block = file.read(min(_BLOCK_BYTES, length - len(data)))
        if not block:
            raise _cut_off(url)
        data += block
    return bytes(data)


def _cut_off(url: str) -> AdapterFileError:
    return AdapterFileError(f"'{url}' is cut off or damaged at its end; export the store again.")


def _check_free(system: Any, path: str, url: str, *, overwrite: bool) -> None:
    if system.isdir(path):
        raise OutputExistsError(f"'{url}' is a folder; name a file in it.")
    if system.exists(path) and not overwrite:
        raise OutputExistsError(f"'{url}' exists; choose another location, or add --overwrite to replace it.")


@contextmanager
def _whole_object(system: Any, path: str, check: Callable[[], None]) -> Generator[BinaryIO]:
    """Do as `whole_file` does, as far as a file system elsewhere can."""
    folder, slash, name = path.rpartition("/")
    draft = f"{folder}{slash}{draft_name(name)}"
    try:
        with system.open(draft, "wb") as file:
            yield file
        check()
        system.mv(draft, path)
    finally:
        if system.exists(draft):
            system.rm(draft)


def _locate(url: str) -> tuple[Any, str]:
    return cast("tuple[Any, str]", cast(Any, fsspec).url_to_fs(url))


@contextmanager
def _reaching(url: str) -> Generator[None]:
    """Turn the errors of a file system into one sentence."""
    try:
        yield
    except (StoreError, OutputExistsError):
        raise
    except (OSError, ImportError, NotImplementedError) as error:
        raise StoreError(f"cannot reach '{url}' ({error}); check the address and the permissions.") from error
    except ValueError as error:
        if isinstance(error, AdapterFileError) or "rotocol" not in str(error):
            raise
        raise StoreError(f"cannot reach '{url}' ({error}); install what fsspec needs for it.") from error
