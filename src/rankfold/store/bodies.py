"""Bytes by their hash: whatever two records have in common is stored once, in pieces that fill the pages."""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

from rankfold.errors import AdapterFileError
from rankfold.store.container import checksum

PIECES = ((16 << 10, 1000), (1 << 20, 4000))
"""A part of fewer bytes than the first is cut into pieces of the second; long ones are faster to read."""

LONGEST_PIECE = 1 << 20

_SHIFT = 20
"""The pieces of part `p` have the ids `p << 20`, and up; they lie side by side in the file."""


def put_part(connection: sqlite3.Connection, data: bytes) -> tuple[int, bytes]:
    """Store bytes, unless they are there, and return the part's id and its hash.

    If they are there but damaged, they are made whole: no other adapter may rest on what is damaged.
    """
    digest = checksum(data)
    known = connection.execute("SELECT id, bytes FROM parts WHERE digest = ?", (digest,)).fetchone()
    if known is None:
        part = connection.execute(
            "INSERT INTO parts (digest, bytes) VALUES (?, ?)", (digest, len(data))
        ).lastrowid
        assert part is not None
    else:
        part, size = known
        if size == len(data) and read_part(connection, part, size) == data:
            return part, digest
        connection.execute("DELETE FROM pieces WHERE id BETWEEN ? AND ?", _ids(part))
        connection.execute("UPDATE parts SET bytes = ? WHERE id = ?", (len(data), part))
    size = next((piece for limit, piece in PIECES if len(data) < limit), LONGEST_PIECE)
    pieces = (
        ((part << _SHIFT) + index, data[begin : begin + size])
        for index, begin in enumerate(range(0, len(data), size))
    )
    connection.executemany("INSERT INTO pieces (id, data) VALUES (?, ?)", pieces)
    return part, digest


def read_part(connection: sqlite3.Connection, part: int, size: int) -> bytes:
    """Return the bytes of a part, without proof of their hash; never more than `size` and one piece."""
    rows = connection.execute("SELECT data FROM pieces WHERE id BETWEEN ? AND ? ORDER BY id", _ids(part))
    return b"".join(_at_most(size, (piece for (piece,) in rows)))


def read_parts(connection: sqlite3.Connection, record: int) -> list[tuple[int, bytes, bytearray]]:
    """Return the parts of a record by position, each with its hash and its bytes.

    Raises:
        AdapterFileError: If the bytes of a part are not those that were stored.
    """
    rows = connection.execute(
        "SELECT position, parts.bytes, digest, data FROM uses JOIN parts ON parts.id = uses.part"
        f" LEFT JOIN pieces ON pieces.id BETWEEN parts.id << {_SHIFT} AND (parts.id + 1 << {_SHIFT}) - 1"
        " WHERE record = ? ORDER BY position, pieces.id",
        (record,),
    )
    found: list[tuple[int, bytes, bytearray]] = []
    for (position, size, digest), group in groupby(rows, key=itemgetter(0, 1, 2)):
        data = bytearray().join(_at_most(size, (piece for *_, piece in group)))
        if len(data) != size or checksum(data) != digest:
            raise damaged("its body")
        found.append((position, digest, data))
    return found


def _at_most(size: int, pieces: Iterable[bytes | None]) -> Iterator[bytes]:
    """Yield pieces until there are more bytes than expected."""
    count = 0
    for piece in pieces:
        if piece is None or count > size:
            return
        count += len(piece)
        yield piece


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
