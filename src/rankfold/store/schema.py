"""The tables of a store, as numbered steps from an empty file; a step that was published never changes.

records  one adapter: its name, its kind, what its configuration changes, and a checksum over all of it
kinds    what alike adapters share: the table of their tensors, base, method, a first configuration
parts    bytes by their hash: a head, a pool, or the rest of one record
pieces   the bytes of the parts, in pieces, so that pages are full
uses     which parts a record is made of
tags, metrics  what a search asks for
"""

APPLICATION_ID = 0x524B4653
"""Marks a SQLite file as a store ("RKFS")."""

PAGE_BYTES = 16384
"""Pages this large lose little at their ends to pieces of a thousand bytes."""

_FIRST = (
    """CREATE TABLE kinds (
        id INTEGER PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        base TEXT NOT NULL,
        method TEXT NOT NULL,
        outline BLOB NOT NULL,
        outline_bytes INTEGER NOT NULL,
        template BLOB NOT NULL,
        template_bytes INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE parts (
        id INTEGER PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        bytes INTEGER NOT NULL
    ) STRICT""",
    "CREATE TABLE pieces (id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT",
    """CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        kind INTEGER NOT NULL REFERENCES kinds,
        format INTEGER NOT NULL,
        created INTEGER NOT NULL,
        config BLOB NOT NULL,
        config_bytes INTEGER NOT NULL,
        digest BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE uses (
        record INTEGER NOT NULL REFERENCES records ON DELETE CASCADE,
        position INTEGER NOT NULL,
        part INTEGER NOT NULL REFERENCES parts,
        PRIMARY KEY (record, position)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX uses_by_part ON uses (part)",
    """CREATE TABLE tags (
        record INTEGER NOT NULL REFERENCES records ON DELETE CASCADE,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (record, name)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX tags_by_value ON tags (name, value)",
    """CREATE TABLE metrics (
        record INTEGER NOT NULL REFERENCES records ON DELETE CASCADE,
        name TEXT NOT NULL,
        value REAL NOT NULL,
        PRIMARY KEY (record, name)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX metrics_by_value ON metrics (name, value)",
)

# The size of an adapter is known without its parts, and the records of a kind without all others.
_SECOND = (
    "ALTER TABLE records ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0",
    """UPDATE records SET bytes = (
        SELECT coalesce(sum(parts.bytes), 0) FROM uses JOIN parts ON parts.id = uses.part
        WHERE uses.record = records.id
    )""",
    "CREATE INDEX records_by_kind ON records (kind)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND)
"""The statements that lead from version 0 to 1, from 1 to 2, and so on."""

VERSION = len(MIGRATIONS)
