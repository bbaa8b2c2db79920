"""Looking after a store: is all of it as it was written, what takes the room, and giving unused room back."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from rankfold.errors import AdapterFileError, RankfoldError
from rankfold.store.bodies import drop_unused_parts, part_is_whole
from rankfold.store.database import Database
from rankfold.store.kinds import read_outline
from rankfold.store.rows import load
from rankfold.store.schema import VERSION


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was written.

    Args:
        name: The adapter that is damaged; None if it is the file.
        reason: What is wrong.
    """

    name: str | None
    reason: str


@final
@dataclass(frozen=True, slots=True)
class Stats:
    """What is in a store, and what takes the room.

    Args:
        version: Of the file's format.
        records: How many adapters.
        kinds: How many sets of alike ones.
        parts: How many bodies, each stored once.
        learned_bytes: Of the adapters' tensors, as if each had its own.
        stored_bytes: Of the bodies in use.
        unused_bytes: Of the bodies that no adapter uses any more; `gc` frees them.
        file_bytes: Of the file, without its `-wal`.
    """

    version: int
    records: int
    kinds: int
    parts: int
    learned_bytes: int
    stored_bytes: int
    unused_bytes: int
    file_bytes: int


@final
@dataclass(frozen=True, slots=True)
class Freed:
    """What `gc` removed: bodies and kinds that no adapter used, and how much smaller the file is."""

    parts: int
    kinds: int
    file_bytes: int


def verify(database: Database) -> Iterator[Fault]:
    """Yield what is not as it was written: in the file, in each adapter, and in what none uses."""
    yield from _faults_of_file(database)
    name = ""
    while (name := _next_name(database, name)) is not None:
        try:
            with database.read() as connection:
                load(connection, name)
        except RankfoldError as error:
            yield Fault(name, str(error))
    yield from _faults_of_rest(database)


def statistics(database: Database) -> Stats:
    """Count what is in a store."""
    with database.read() as connection:
        records, learned = _row(connection, "SELECT count(*), coalesce(sum(bytes), 0) FROM records")
        (kinds,) = _row(connection, "SELECT count(*) FROM kinds")
        parts, stored = _row(connection, "SELECT count(*), coalesce(sum(bytes), 0) FROM parts")
        (unused,) = _row(
            connection,
            "SELECT coalesce(sum(bytes), 0) FROM parts"
            " WHERE NOT EXISTS (SELECT 1 FROM uses WHERE uses.part = parts.id)",
        )
        size = _file_bytes(connection)
    return Stats(VERSION, records, kinds, parts, learned, stored - unused, unused, size)


def collect(database: Database) -> Freed:
    """Remove what no adapter uses, and give its room back to the disk."""
    with database.write() as connection:
        before = _file_bytes(connection)
        parts, _ = drop_unused_parts(connection)
        kinds = connection.execute(
            "DELETE FROM kinds WHERE NOT EXISTS (SELECT 1 FROM records WHERE records.kind = kinds.id)"
        ).rowcount
    with database.plain() as connection:
        # `execute` would stop after one page.
        connection.executescript("PRAGMA incremental_vacuum")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        after = _file_bytes(connection)
    return Freed(parts, kinds, before - after)


def _faults_of_file(database: Database) -> Iterator[Fault]:
    with database.read() as connection:
        lines = [line for (line,) in connection.execute("PRAGMA integrity_check")]
        lines += [f"{row[0]} points nowhere" for row in connection.execute("PRAGMA foreign_key_check")]
    yield from (Fault(None, line) for line in lines if line != "ok")


def _faults_of_rest(database: Database) -> Iterator[Fault]:
    with database.read() as connection:
        unused = connection.execute(
            "SELECT id FROM parts WHERE NOT EXISTS (SELECT 1 FROM uses WHERE uses.part = parts.id)"
        ).fetchall()
        for (part,) in unused:
            if not part_is_whole(connection, part):
                yield Fault(None, f"the unused part {part} is damaged; `gc` removes it")
        for kind, digest, outline, size in connection.execute(
            "SELECT id, digest, outline, outline_bytes FROM kinds"
        ):
            try:
                whole = read_outline(outline, size)[1] == digest
            except AdapterFileError:
                whole = False
            if not whole:
                yield Fault(None, f"the kind {kind} is damaged")


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
