"""Maintenance of a store: verify every byte, count the room it takes, and free unused room."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from rankfold.errors import AdapterFileError, RankfoldError, SpecError
from rankfold.store.database import VERSION, Database
from rankfold.store.rows import load
from rankfold.store.sharing import REMAINDER, drop_unused_parts, is_part_whole, read_outline


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """A fault found in a store.

    Args:
        name: The adapter that is damaged; None if it is the file.
        reason: The fault.
    """

    name: str | None
    reason: str


@final
@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of a store's content, and the room it takes.

    Args:
        version: The version of the file's format.
        records: The number of adapters.
        families: The number of families: same base, method and tensor layout.
        parts: The number of parts, each stored once.
        learned_bytes: The bytes of the adapters' tensors, as if each had its own.
        stored_bytes: The bytes of the parts in use.
        unused_bytes: The bytes of the parts that no adapter uses any more; `gc` frees them.
        file_bytes: The size of the file, without its `-wal`.
    """

    version: int
    records: int
    families: int
    parts: int
    learned_bytes: int
    stored_bytes: int
    unused_bytes: int
    file_bytes: int


@final
@dataclass(frozen=True, slots=True)
class FreedRoom:
    """The unused parts and families that `gc` removed, and the bytes by which the file is smaller."""

    parts: int
    families: int
    file_bytes: int


def verify(database: Database) -> Iterator[Fault]:
    """Yield the faults of the file, of adapters and bases, and of the parts and families that none uses."""
    yield from _faults_of_file(database)
    name = ""
    while (name := _next_name(database, name)) is not None:
        try:
            with database.read() as connection:
                load(connection, name)
        except RankfoldError as error:
            yield Fault(name, str(error))
    yield from _faults_of_parts(database)


def statistics(database: Database) -> Stats:
    """Count the content of a store."""
    with database.read() as connection:
        records, learned_bytes = _row(connection, "SELECT count(*), coalesce(sum(bytes), 0) FROM records")
        (families,) = _row(connection, "SELECT count(*) FROM kinds")
        parts, stored_bytes = _row(connection, "SELECT count(*), coalesce(sum(bytes), 0) FROM parts")
        (unused_bytes,) = _row(
            connection,
            "SELECT coalesce(sum(bytes), 0) FROM parts"
            " WHERE NOT EXISTS (SELECT 1 FROM uses WHERE uses.part = parts.id)",
        )
        size = _file_bytes(connection)
    return Stats(
        VERSION, records, families, parts, learned_bytes, stored_bytes - unused_bytes, unused_bytes, size
    )


def collect(database: Database) -> FreedRoom:
    """Remove the parts and families that no adapter uses, and give their room back to the disk.

    Raises:
        SpecError: If it is called within a batch.
    """
    with database.plain() as connection:
        if connection.in_transaction:
            raise SpecError("gc cannot be a part of a batch; call it after the batch.")
    with database.write() as connection:
        before = _file_bytes(connection)
        parts = drop_unused_parts(connection)
        families = connection.execute(
            "DELETE FROM kinds WHERE NOT EXISTS (SELECT 1 FROM records WHERE records.kind = kinds.id)"
        ).rowcount
    with database.plain() as connection:
        # `execute` would stop after one page.
        connection.executescript("PRAGMA incremental_vacuum")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        after = _file_bytes(connection)
    return FreedRoom(parts, families, before - after)


def _faults_of_file(database: Database) -> Iterator[Fault]:
    with database.read() as connection:
        lines = [line for (line,) in connection.execute("PRAGMA integrity_check")]
        lines += [f"{row[0]} points nowhere" for row in connection.execute("PRAGMA foreign_key_check")]
    yield from (Fault(None, line) for line in lines if line != "ok")


def _faults_of_parts(database: Database) -> Iterator[Fault]:
    with database.read() as connection:
        unused_bytes = connection.execute(
            "SELECT id FROM parts WHERE NOT EXISTS (SELECT 1 FROM uses WHERE uses.part = parts.id)"
        ).fetchall()
        for (part,) in unused_bytes:
            if not is_part_whole(connection, part):
                yield Fault(None, f"the unused part {part} is damaged; `gc` removes it")
        for (part,) in connection.execute(
            "SELECT DISTINCT part FROM uses WHERE position < ?", (REMAINDER,)
        ).fetchall():
            if not is_part_whole(connection, part):
                yield Fault(None, "a learned basis is damaged; put one of its adapters again")
        for family, digest, outline, size in connection.execute(
            "SELECT id, digest, outline, outline_bytes FROM kinds"
        ):
            try:
                whole = read_outline(outline, size)[1] == digest
            except AdapterFileError:
                whole = False
            if not whole:
                yield Fault(None, f"the family {family} is damaged")


def _next_name(database: Database, name: str) -> str | None:
    with database.read() as connection:
        row = connection.execute("SELECT min(name) FROM records WHERE name > ?", (name,)).fetchone()
    return row[0]


def _file_bytes(connection: sqlite3.Connection) -> int:
    (pages,) = _row(connection, "PRAGMA page_count")
    (size,) = _row(connection, "PRAGMA page_size")
    return pages * size


def _row(connection: sqlite3.Connection, query: str) -> tuple[int, ...]:
    return connection.execute(query).fetchone()
