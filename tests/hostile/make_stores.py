"""Hostile stores: databases, with pages as small as can be, in which something is not as we write it."""

import json
import sqlite3
import zlib
from contextlib import closing

from rankfold import AdapterStore
from rankfold.store.container import checksum
from tests.support.stored import make_adapter

BOMB = zlib.compress(bytes(32 << 20), 9)


def outline(**values):
    """Return the SQL that gives the kind another outline, with its right hash."""
    good = {
        "base": "tiny",
        "method": "tlora",
        "tensors": [["x", "F32", [24]]],
        "metadata": None,
        "header": None,
    }
    return outline_text(json.dumps({**good, **values}).encode())


def outline_text(text, *, size=None):
    """Return the SQL that makes a text the kind's outline."""
    blob = zlib.compress(text, 9)
    size = len(text) if size is None else size
    digest = checksum(blob)
    return f"UPDATE kinds SET outline = x'{blob.hex()}', outline_bytes = {size}, digest = x'{digest.hex()}'"


CHANGES = {
    "of-the-future": "PRAGMA user_version = 99",
    "version-negative": "PRAGMA user_version = -1",
    "of-another-program": "PRAGMA application_id = 1",
    "with-a-trigger": "CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END",
    "with-a-view": "DROP TABLE tags; CREATE VIEW tags AS SELECT id AS record, name, name AS value FROM kinds",
    "with-another-table": "CREATE TABLE more (x)",
    "without-a-table": "DROP TABLE metrics",
    "with-a-looser-table": "DROP TABLE pieces; CREATE TABLE pieces (id INTEGER PRIMARY KEY, data)",
    "outline-bomb": outline_text(bytes(32 << 20), size=32 << 20),
    "outline-bomb-that-says-little": outline_text(bytes(32 << 20), size=300),
    "outline-negative": "UPDATE kinds SET outline_bytes = -1",
    "outline-broken": outline_text(b"{"),
    "outline-list": outline_text(b"[]"),
    "outline-name-above": outline(tensors=[["../x", "F32", [24]]]),
    "outline-name-twice": outline(tensors=[["x", "F32", [12]], ["x", "F32", [12]]]),
    "outline-huge-shape": outline(tensors=[["x", "F32", [2**62]]]),
    "outline-negative-shape": outline(tensors=[["x", "F32", [-24]]]),
    "outline-other-tensors": outline(tensors=[["x", "F32", [25]]]),
    "outline-header-that-lies": outline(header='{"x":{"dtype":"F32","shape":[24],"data_offsets":[1,97]}}'),
    "outline-consistent-but-other": outline(),
    "template-bomb": f"UPDATE kinds SET template = x'{BOMB.hex()}', template_bytes = {32 << 20}",
    "template-length-largest": f"UPDATE kinds SET template_bytes = {2**62}",
    "configuration-bomb": f"UPDATE records SET config = x'{BOMB.hex()}', config_bytes = {32 << 20}",
    "configuration-length-negative": "UPDATE records SET config_bytes = -5, config = x'00'",
    "configuration-garbage": "UPDATE records SET config = x'deadbeef'",
    "part-number-largest": f"UPDATE parts SET id = {2**62}; UPDATE uses SET part = {2**62}",
    "part-length-largest": f"UPDATE parts SET bytes = {2**62}",
    "part-length-negative": "UPDATE parts SET bytes = -1",
    "piece-missing": "DELETE FROM pieces",
    "piece-endless": "UPDATE pieces SET data = zeroblob(6000)",
    "piece-added": "INSERT INTO pieces (id, data) SELECT id + 1, x'00' FROM pieces",
    "part-twice": "INSERT INTO uses SELECT record, 0, part FROM uses",
    "position-beyond": "UPDATE uses SET position = 1000000",
    "position-negative": "UPDATE uses SET position = -2",
    "part-missing": "DELETE FROM uses",
    "kind-missing": "UPDATE records SET kind = 77",
    "format-9": "UPDATE records SET format = 9",
    "time-largest": f"UPDATE records SET created = {2**62}",
    "time-negative": "UPDATE records SET created = -1",
    "metric-infinite": "INSERT INTO metrics SELECT id, 'accuracy', 9e999 FROM records",
    "tag-added": "INSERT INTO tags SELECT id, 'customer', 'b' FROM records",
    "size-negative": "UPDATE records SET bytes = -1",
}


def write_stores(folder):
    """Write every store."""
    good = folder / "good.db"
    for name, script in CHANGES.items():
        path = _write_small(folder / f"{name}.db", good)
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(f"PRAGMA foreign_keys = OFF; {script}; VACUUM")
    content = _write_small(folder / "cut.db", good).read_bytes()
    (folder / "cut.db").write_bytes(content[: len(content) // 2])
    (folder / "pages-of-garbage.db").write_bytes(content[:512] + b"\xa5" * (len(content) - 512))
    (folder / "text.db").write_bytes(b"SQLite format 3 is what this letter is about.\n")


def _write_small(path, good):
    """Write a store with one adapter in pages of 512 bytes, and no `-wal` beside it."""
    path.unlink(missing_ok=True)
    good.unlink(missing_ok=True)
    with AdapterStore(good) as store:
        store.put("a", make_adapter())
    with closing(sqlite3.connect(good)) as connection:
        connection.executescript("PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM")
    good.rename(path)
    return path
