"""Bytes by their hash: whatever two records have in common is stored once, in pieces that fill the pages."""

import sqlite3
from collections.abc import Iterator

from rankfold.errors import AdapterFileError
from rankfold.pack.container import checksum

PIECE_BYTES = 1000
LONG_PIECE_BYTES = 1 << 20
LONG_BYTES = 1 << 18
"""From here on a part is cut into long pieces: a page lost at the end no longer matters."""

_SHIFT = 20
"""The pieces of part `p` have the ids `p << 20`, and up; they lie side by side in the file."""


def put_part(connection: sqlite3.Connection, data: bytes) -> tuple[int, bytes]:
    """Store bytes, unless they are there, and return the part's id and its hash.

    Raises:
        AdapterFileError: If they are there, but damaged.
    """
    digest = checksum(data)
    known = connection.execute("SELECT id, bytes FROM parts WHERE digest = ?", (digest,)).fetchone()
    if known is not None:
        # Another record must not rest on what is damaged.
        if read_part(connection, known[0], known[1]) != data:
            raise damaged("a part that it shares")
        return known[0], digest
    part = connection.execute(
        "INSERT INTO parts (digest, bytes) VALUES (?, ?)", (digest, len(data))
    ).lastrowid
    assert part is not None
    size = PIECE_BYTES if len(data) < LONG_BYTES else LONG_PIECE_BYTES
    pieces = (
        ((part << _SHIFT) + index, data[begin : begin + size])
        for index, begin in enumerate(range(0, len(data), size))
    )
    connection.executemany("INSERT INTO pieces (id, data) VALUES (?, ?)", pieces)
    return part, digest


def read_part(connection: sqlite3.Connection, part: int, size: int) -> bytes:
    """Return the bytes of a part, without proof of their hash; never more than `size` and one piece."""
    data = bytearray()
    for (piece,) in connection.execute(
        "SELECT data FROM pieces WHERE id BETWEEN ? AND ? ORDER BY id", _ids(part)
    ):
        data += piece
        if len(data) > size:
            break
    return bytes(data)


def read_parts(connection: sqlite3.Connection, record: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the parts of a record by position, each with its hash and its bytes.

    Raises:
        AdapterFileError: If the bytes of a part are not those that were stored.
    """
    parts = connection.execute(
        "SELECT position, parts.id, parts.bytes, parts.digest FROM uses JOIN parts ON parts.id = uses.part"
        " WHERE uses.record = ? ORDER BY position",
        (record,),
    ).fetchall()
    for position, part, size, digest in parts:
        data = read_part(connection, part, size)
        if len(data) != size or checksum(data) != digest:
            raise damaged("its body")
        yield position, digest, data


def part_is_whole(connection: sqlite3.Connection, part: int) -> bool:
    """Whether the bytes of a part are those that were stored."""
    size, digest = connection.execute("SELECT bytes, digest FROM parts WHERE id = ?", (part,)).fetchone()
    data = read_part(connection, part, size)
    return len(data) == size and checksum(data) == digest


def drop_unused_parts(connection: sqlite3.Connection) -> tuple[int, int]:
    """Remove the parts that no record uses; return how many, and their bytes."""
    unused = connection.execute(
        "SELECT id, bytes FROM parts WHERE NOT EXISTS (SELECT 1 FROM uses WHERE uses.part = parts.id)"
    ).fetchall()
    for part, _ in unused:
        connection.execute("DELETE FROM pieces WHERE id BETWEEN ? AND ?", _ids(part))
        connection.execute("DELETE FROM parts WHERE id = ?", (part,))
    return len(unused), sum(size for _, size in unused)


def damaged(what: str) -> AdapterFileError:
    """Return the error for something in the store that is not as it was written."""
    return AdapterFileError(f"{what} is damaged in the store; put the adapter again, or restore a copy.")


def _ids(part: int) -> tuple[int, int]:
    return part << _SHIFT, (part + 1 << _SHIFT) - 1
