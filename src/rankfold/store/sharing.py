"""Everything that adapters of a store share is stored once: families, and parts under their hash.

A family has the same base, method and tensor layout; its table of tensors and a template of its texts,
which are configurations with manifests and certificates, are stored once. A part is some bytes of adapters
under their hash, in pieces that fill the pages of the file.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import final

from pydantic import JsonValue

from rankfold.errors import AdapterFileError
from rankfold.factors.basis import is_known
from rankfold.store.adapter import SavedAdapter
from rankfold.store.basis import read_content
from rankfold.store.container import checksum
from rankfold.store.strict_json import MOST_BYTES, compress, expand, inflate
from rankfold.store.tensors import TensorEntry
from rankfold.store.weights import Layout, read_layout

PIECES = ((16 << 10, 1000), (1 << 20, 4000))
"""A part of fewer bytes than the first is cut into pieces of the second; long ones are faster to read."""

LONGEST_PIECE = 1 << 20

REMAINDER = -1
"""The position of the part that holds all tensors without a part of their own; below it are bases."""

_LEVEL = 9
_BETWEEN = b"\0"  # no JSON text holds it
_METHOD_OF_PRESETS = "RANKFOLD"
_SHIFT = 20
"""The pieces of part `p` have the ids `p << 20`, and up; they lie side by side in the file."""


@final
@dataclass(frozen=True, slots=True)
class Family:
    """Adapters of one base, method and tensor layout; a row of the table `kinds`.

    Args:
        base: The base model's name in their configurations; "" if they have none.
        method: The preset, or PEFT's name of the method in lower case.
        layout: The layout of their weights files.
    """

    base: str
    method: str
    layout: Layout

    @classmethod
    def of(cls, adapter: SavedAdapter) -> "Family":
        """Return the family of an adapter."""
        values = adapter.config_values
        base, preset = values.get("base_model_name_or_path"), values.get("preset")
        by_preset = adapter.method == _METHOD_OF_PRESETS and isinstance(preset, str)
        method = preset if by_preset else adapter.method.lower()
        return cls(base if isinstance(base, str) else "", str(method), adapter.layout)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the family as JSON values; `read_outline` is the way back."""
        layout = self.layout
        return {
            "base": self.base,
            "method": self.method,
            "tensors": [entry.to_json() for entry in layout.entries],
            "metadata": None if layout.metadata is None else dict(layout.metadata),
            "header": None if layout.header is None else layout.header.decode(),
        }


def join_texts(adapter: SavedAdapter) -> bytes:
    """Return the texts of an adapter, its configuration and perhaps manifest and certificate, as one."""
    texts = [adapter.config, adapter.manifest_text or b"", adapter.certificate_text or b""]
    while not texts[-1]:
        texts.pop()
    return _BETWEEN.join(texts)


def split_texts(texts: bytes) -> tuple[bytes, bytes | None, bytes | None]:
    """Return the configuration, the manifest and the certificate that `join_texts` joined.

    Raises:
        AdapterFileError: If there are more texts.
    """
    config, *others = texts.split(_BETWEEN)
    if len(others) > 2:  # noqa: PLR2004
        raise damage_error("its description")
    manifest, certificate = [text or None for text in [*others, b"", b""][:2]]
    return config, manifest, certificate


def put_family(connection: sqlite3.Connection, family: Family, texts: bytes) -> tuple[int, bytes, bytes, int]:
    """Store a family, unless it is there.

    Args:
        connection: In a transaction that may write.
        family: The family.
        texts: Those of an adapter; the first ones of a family are the template of the others.

    Returns:
        The family's id, its outline and its template, both compressed, and the template's length.
    """
    outline, outline_bytes = compress(family.to_json())
    digest = checksum(outline)
    row = connection.execute(
        "SELECT id, outline, template, template_bytes FROM kinds WHERE digest = ?", (digest,)
    ).fetchone()
    if row is not None:
        return row
    template = zlib.compress(texts, _LEVEL)
    row_id = connection.execute(
        "INSERT INTO kinds (digest, base, method, outline, outline_bytes, template, template_bytes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (digest, family.base, family.method, outline, outline_bytes, template, len(texts)),
    ).lastrowid
    assert row_id is not None
    return row_id, outline, template, len(texts)


@lru_cache(maxsize=1024)
def read_outline(outline: bytes, outline_bytes: int) -> tuple[Family, bytes]:
    """Read a family's outline; return it with its hash.

    Raises:
        AdapterFileError: If it is damaged.
    """
    match expand(outline, outline_bytes):
        case {
            "base": str() as base,
            "method": str() as method,
            "tensors": list() as tensors,
            "metadata": None | dict() as metadata,
            "header": None | str() as header,
            **unknown,
        } if not unknown:
            entries = tuple(map(TensorEntry.read, tensors))
            texts = None if metadata is None else {name: str(text) for name, text in metadata.items()}
        case _:
            raise AdapterFileError("a family of adapters is damaged in the store; restore a copy.")
    layout = Layout(entries, texts) if header is None else read_layout(header.encode())
    if len({entry.name for entry in entries}) != len(entries) or layout.entries != entries:
        raise AdapterFileError("a family of adapters contradicts itself in the store; restore a copy.")
    return Family(base, method, layout), checksum(outline)


def deflate_texts(texts: bytes, template: bytes, template_bytes: int) -> bytes:
    """Return an adapter's texts compressed against its family's template; nothing if they are equal.

    Args:
        texts: The result of `join_texts`.
        template: The family's template, compressed.
        template_bytes: The template's length in the store.
    """
    dictionary = _inflate_template(template, template_bytes)
    if texts == dictionary:
        return b""
    stream = zlib.compressobj(_LEVEL, zdict=dictionary)
    return stream.compress(texts) + stream.flush()


def inflate_texts(delta: bytes, size: int, template: bytes, template_bytes: int) -> bytes:
    """Return the texts that `deflate_texts` compressed.

    Args:
        delta: The result of `deflate_texts`.
        size: The length of the texts in the store.
        template: The family's template, compressed.
        template_bytes: The template's length in the store.

    Raises:
        AdapterFileError: If either is damaged.
    """
    dictionary = _inflate_template(template, template_bytes)
    texts = inflate(delta, _check_size(size), dictionary=dictionary) if delta else dictionary
    if len(texts) != size:
        raise AdapterFileError("a configuration has another length than stated; restore a copy of the store.")
    return texts


def put_part(connection: sqlite3.Connection, data: bytes) -> tuple[int, bytes]:
    """Store bytes, unless they are there, and return the part's id and its hash.

    If they are there but damaged, they are written again: no other adapter may rest on damaged bytes.
    """
    digest = checksum(data)
    row = connection.execute("SELECT id, bytes FROM parts WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        part = connection.execute(
            "INSERT INTO parts (digest, bytes) VALUES (?, ?)", (digest, len(data))
        ).lastrowid
        assert part is not None
    else:
        part, size = row
        if size == len(data) and _read_part(connection, part, size) == data:
            return part, digest
        connection.execute("DELETE FROM pieces WHERE id BETWEEN ? AND ?", _piece_ids(part))
        connection.execute("UPDATE parts SET bytes = ? WHERE id = ?", (len(data), part))
    size = next((piece for limit, piece in PIECES if len(data) < limit), LONGEST_PIECE)
    pieces = (
        ((part << _SHIFT) + index, data[begin : begin + size])
        for index, begin in enumerate(range(0, len(data), size))
    )
    connection.executemany("INSERT INTO pieces (id, data) VALUES (?, ?)", pieces)
    return part, digest


def read_bases(connection: sqlite3.Connection, record: int) -> list[tuple[int, bytes]]:
    """Return the position and the digest of the bases that a record needs; those not known yet are read.

    Raises:
        AdapterFileError: If one is damaged.
    """
    uses = connection.execute(
        "SELECT position, parts.id, bytes, digest FROM uses JOIN parts ON parts.id = uses.part"
        " WHERE record = ? AND position < ? ORDER BY position",
        (record, REMAINDER),
    ).fetchall()
    for _, part, size, digest in uses:
        if not is_known(digest.hex()):
            read_content(_read_part(connection, part, size) + digest)
    return [(position, digest) for position, _, _, digest in uses]


def read_parts(connection: sqlite3.Connection, record: int) -> list[tuple[int, bytes, bytearray]]:
    """Return the parts of a record by position, each with its hash and its bytes; without bases.

    Raises:
        AdapterFileError: If the bytes of a part are not those that were stored.
    """
    rows = connection.execute(
        "SELECT position, parts.bytes, digest, data FROM uses JOIN parts ON parts.id = uses.part"
        f" LEFT JOIN pieces ON pieces.id BETWEEN parts.id << {_SHIFT} AND (parts.id + 1 << {_SHIFT}) - 1"
        " WHERE record = ? AND position >= ? ORDER BY position, pieces.id",
        (record, REMAINDER),
    )
    parts: list[tuple[int, bytes, bytearray]] = []
    for (position, size, digest), group in groupby(rows, key=itemgetter(0, 1, 2)):
        data = bytearray().join(_at_most(size, (piece for *_, piece in group)))
        if len(data) != size or checksum(data) != digest:
            raise damage_error("its body")
        parts.append((position, digest, data))
    return parts


def is_part_whole(connection: sqlite3.Connection, part: int) -> bool:
    """Whether the bytes of a part are those that were stored."""
    size, digest = connection.execute("SELECT bytes, digest FROM parts WHERE id = ?", (part,)).fetchone()
    data = _read_part(connection, part, size)
    return len(data) == size and checksum(data) == digest


def drop_unused_parts(connection: sqlite3.Connection) -> int:
    """Remove the parts that no record uses; return how many."""
    rows = connection.execute(
        "SELECT id FROM parts WHERE NOT EXISTS (SELECT 1 FROM uses WHERE uses.part = parts.id)"
    ).fetchall()
    for (part,) in rows:
        connection.execute("DELETE FROM pieces WHERE id BETWEEN ? AND ?", _piece_ids(part))
        connection.execute("DELETE FROM parts WHERE id = ?", (part,))
    return len(rows)


def damage_error(noun: str) -> AdapterFileError:
    """Return the error for something in the store that is not as it was written."""
    return AdapterFileError(f"{noun} is damaged in the store; put the adapter again, or restore a copy.")


@lru_cache(maxsize=1024)
def _inflate_template(template: bytes, size: int) -> bytes:
    return inflate(template, _check_size(size))


def _check_size(size: int) -> int:
    if not 0 <= size <= MOST_BYTES:
        raise AdapterFileError(f"a configuration should have {size:,} bytes; restore a copy of the store.")
    return size


def _read_part(connection: sqlite3.Connection, part: int, size: int) -> bytes:
    """Return the bytes of a part, without proof of their hash; never more than `size` and one piece."""
    rows = connection.execute(
        "SELECT data FROM pieces WHERE id BETWEEN ? AND ? ORDER BY id", _piece_ids(part)
    )
    return b"".join(_at_most(size, (piece for (piece,) in rows)))


def _at_most(size: int, pieces: Iterable[bytes | None]) -> Iterator[bytes]:
    """Yield pieces until there are more bytes than expected."""
    count = 0
    for piece in pieces:
        if piece is None or count > size:
            return
        count += len(piece)
        yield piece


def _piece_ids(part: int) -> tuple[int, int]:
    return part << _SHIFT, (part + 1 << _SHIFT) - 1
