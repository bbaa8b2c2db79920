"""One record as rows of the tables, and back, with proof of its checksum."""

import dataclasses
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from rankfold.errors import AdapterFileError, OutputExistsError, SpecError
from rankfold.store.adapter import SavedAdapter
from rankfold.store.bodies import damaged, put_part, read_parts
from rankfold.store.kinds import Kind, deflate_config, inflate_config, put_kind, read_outline
from rankfold.store.record import FORMAT, TIME, UNSEALED, Record, check_labels, digest_of, moment_of
from rankfold.store.tensors import Cutter, bytes_of
from rankfold.store.weights import Layout

SHARED_BYTES = 16384
"""A tensor of this size is a part of its own: another adapter may have the same, and the cost is small."""

SHARED_HEAD_BYTES = 512
"""The same of a module that was saved whole, such as a classification head."""

_REST = -1
"""The position of the part that holds all other tensors."""

_SAID = "records.id, records.name, base, method, bytes, created, records.digest, format"
_SAID_COLUMNS = len(_SAID.split(","))
_FROM = "FROM records JOIN kinds ON kinds.id = records.kind"

_MOST_SECONDS = 253_402_300_799


def describe(
    name: str,
    saved: SavedAdapter,
    *,
    created: datetime,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> Record:
    """Return what is to be said of an adapter, without its checksum.

    Raises:
        SpecError: If a name, tag or metric cannot be stored.
    """
    check_labels(name, tags, metrics)
    kind = Kind.of(saved)
    numbers = {key: float(metrics[key]) for key in sorted(metrics)}
    texts = {key: tags[key] for key in sorted(tags)}
    moment = created.strftime(TIME)
    return Record(name, kind.base, kind.method, saved.learned_bytes, moment, UNSEALED, texts, numbers)


def has(connection: sqlite3.Connection, name: str) -> bool:
    """Whether there is a record of this name."""
    return connection.execute("SELECT 1 FROM records WHERE name = ?", (name,)).fetchone() is not None


def remove(connection: sqlite3.Connection, name: str) -> None:
    """Remove a record; its parts stay.

    Raises:
        SpecError: If there is none of this name.
    """
    if not connection.execute("DELETE FROM records WHERE name = ?", (name,)).rowcount:
        raise _unknown(connection, name)


def put(connection: sqlite3.Connection, record: Record, saved: SavedAdapter, *, replace: bool) -> Record:
    """Store an adapter and return its record with the checksum.

    Args:
        connection: In a transaction that may write.
        record: What `describe` said of it.
        saved: The adapter.
        replace: Whether to replace a record of this name.

    Raises:
        OutputExistsError: If there is one.
    """
    if has(connection, record.name):
        if not replace:
            raise OutputExistsError(
                f"the store has an adapter '{record.name}'; choose another name, or add --replace."
            )
        remove(connection, record.name)
    kind, outline, template, template_bytes = put_kind(connection, Kind.of(saved), saved.config)
    parts = {position: put_part(connection, data) for position, data in _bodies(saved).items()}
    digests = [(position, digest) for position, (_, digest) in parts.items()]
    delta = deflate_config(saved.config, template, template_bytes)
    record = dataclasses.replace(record, digest=digest_of(record, (outline, template, delta), digests))
    created = int(moment_of(record.created).timestamp())
    row = connection.execute(
        "INSERT INTO records (name, kind, format, created, config, config_bytes, digest, bytes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.name,
            kind,
            FORMAT,
            created,
            delta,
            len(saved.config),
            bytes.fromhex(record.digest),
            record.bytes,
        ),
    ).lastrowid
    uses = [(row, position, part) for position, (part, _) in parts.items()]
    tags = [(row, *pair) for pair in record.tags.items()]
    metrics = [(row, *pair) for pair in record.metrics.items()]
    connection.executemany("INSERT INTO uses (record, position, part) VALUES (?, ?, ?)", uses)
    connection.executemany("INSERT INTO tags (record, name, value) VALUES (?, ?, ?)", tags)
    connection.executemany("INSERT INTO metrics (record, name, value) VALUES (?, ?, ?)", metrics)
    return record


def load(connection: sqlite3.Connection, name: str) -> tuple[Record, SavedAdapter]:
    """Read an adapter and its record.

    Args:
        connection: In a transaction.
        name: The record's name.

    Raises:
        AdapterFileError: If anything of it is not as it was written.
        SpecError: If there is none of this name.
    """
    row = connection.execute(
        f"SELECT {_SAID}, config, config_bytes, template, template_bytes, outline, outline_bytes"
        f" {_FROM} WHERE records.name = ?",
        (name,),
    ).fetchone()
    if row is None:
        raise _unknown(connection, name)
    delta, config_bytes, template, template_bytes, outline, outline_bytes = row[_SAID_COLUMNS:]
    (record,) = _records(connection, [row[:_SAID_COLUMNS]])
    try:
        kind, _ = read_outline(outline, outline_bytes)
        config = inflate_config(delta, config_bytes, template, template_bytes)
        parts = read_parts(connection, row[0])
        digests = [(position, digest) for position, digest, _ in parts]
        if digest_of(record, (outline, template, delta), digests) != record.digest:
            raise damaged("its description")
        tensors = _assemble(kind.layout, {position: data for position, _, data in parts})
        if kind.layout.payload_bytes != record.bytes:
            raise damaged("its size")
    except AdapterFileError as error:
        raise AdapterFileError(f"adapter '{name}': {error}") from error
    return record, SavedAdapter(config, kind.layout, tensors, source=name)


def select(
    connection: sqlite3.Connection, condition: str, values: Sequence[str | int | float], *, limit: int
) -> list[Record]:
    """Return the records that meet a condition, by name.

    Raises:
        AdapterFileError: If one has a format that is not known here, or a time that is none.
    """
    rows = connection.execute(
        f"SELECT {_SAID} {_FROM} WHERE {condition} ORDER BY records.name LIMIT {limit}", values
    ).fetchall()
    return _records(connection, rows)


def _records(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> list[Record]:
    """Return records from their rows, with what is written beside them."""
    tags: dict[int, dict[str, str]] = {row[0]: {} for row in rows}
    metrics: dict[int, dict[str, float]] = {row[0]: {} for row in rows}
    ids = [row[0] for row in rows]
    where = f"WHERE record IN ({','.join('?' * len(ids))})"
    for is_tag, row, name, value in connection.execute(
        f"SELECT 1, record, name, value FROM tags {where} UNION ALL"
        f" SELECT 0, record, name, value FROM metrics {where} ORDER BY 1, 2, 3",
        ids * 2,
    ):
        (tags if is_tag else metrics)[row][name] = value
    return [_record(row, tags[row[0]], metrics[row[0]]) for row in rows]


def _unknown(connection: sqlite3.Connection, name: str) -> SpecError:
    near = connection.execute(
        "SELECT name FROM (SELECT name FROM records WHERE name >= ?1 ORDER BY name LIMIT 3)"
        " UNION SELECT name FROM (SELECT name FROM records WHERE name < ?1 ORDER BY name DESC LIMIT 3)",
        (name,),
    ).fetchall()
    hint = f"names near it are {', '.join(each for (each,) in near)}" if near else "the store is empty"
    return SpecError(f"there is no adapter '{name}'; {hint}.")


def _record(row: tuple[Any, ...], tags: dict[str, str], metrics: dict[str, float]) -> Record:
    _, name, base, method, size, created, digest, form = row
    if form != FORMAT:
        raise AdapterFileError(
            f"adapter '{name}' has format {form} and this is for {FORMAT}; update rankfold."
        )
    if not 0 <= created <= _MOST_SECONDS:
        raise AdapterFileError(f"adapter '{name}': {damaged('its time')}")
    moment = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    return Record(name, base, method, size, moment, digest.hex(), tags, metrics)


def _bodies(saved: SavedAdapter) -> dict[int, bytes]:
    """Return the bytes of an adapter's parts by position: what may be shared by its index, and the rest."""
    names = set(saved.modules_to_save)
    alone: dict[int, bytes] = {}
    rest: list[bytes] = []
    for index, entry in enumerate(saved.layout.entries):
        is_head = not names.isdisjoint(entry.name.split("."))
        data = bytes_of(saved.tensors[entry.name])
        if len(data) >= (SHARED_HEAD_BYTES if is_head else SHARED_BYTES):
            alone[index] = data
        else:
            rest.append(data)
    return ({_REST: b"".join(rest)} if any(rest) else {}) | alone


def _assemble(layout: Layout, bodies: dict[int, bytearray]) -> dict[str, Tensor]:
    """Return the tensors of an adapter from its parts."""
    alone = bodies.keys() - {_REST}
    if not alone <= set(range(len(layout.entries))):
        raise damaged("the list of its parts")
    if not alone:
        return _cut(layout.cutter, bodies)
    rest = Cutter([entry for index, entry in enumerate(layout.entries) if index not in alone])
    tensors = _cut(rest, bodies)
    for index in alone:
        tensors |= _cut(Cutter([layout.entries[index]]), bodies, index)
    return {entry.name: tensors[entry.name] for entry in layout.entries}


def _cut(cutter: Cutter, bodies: dict[int, bytearray], position: int = _REST) -> dict[str, Tensor]:
    data = bodies.get(position, bytearray())
    if len(data) != cutter.bytes:
        raise damaged("the length of a part")
    return cutter.cut(data)
