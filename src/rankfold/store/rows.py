"""Records in the tables of a store: put, load, remove and search, with proof of each record's checksum."""

import dataclasses
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, final

from torch import Tensor

from rankfold.errors import AdapterFileError, OutputExistsError, SpecError, UnknownAdapterError, unknown_name
from rankfold.store.adapter import SavedAdapter
from rankfold.store.basis import content_of, digests_in
from rankfold.store.container import DIGEST_BYTES
from rankfold.store.record import (
    BASIS_FORMAT,
    FORMAT,
    FORMATS,
    MANIFEST_FORMAT,
    NO_DIGEST,
    ROUNDED_FORMAT,
    TIME,
    Record,
    check_labels,
    digest_of,
    moment_of,
)
from rankfold.store.rounding import grid_of
from rankfold.store.sharing import (
    REMAINDER,
    Family,
    damage_error,
    deflate_texts,
    inflate_texts,
    join_texts,
    put_family,
    put_part,
    read_bases,
    read_outline,
    read_parts,
    split_texts,
)
from rankfold.store.tensors import Cutter, bytes_of
from rankfold.store.weights import Layout

SHARED_BYTES = 16384
"""A tensor of this size is a part of its own: another adapter may have the same, and the cost is small."""

SHARED_HEAD_BYTES = 512
"""The same of a module that was saved whole, such as a classification head."""

_COLUMNS = "records.id, records.name, base, method, bytes, created, records.digest, format"
_COLUMN_COUNT = len(_COLUMNS.split(","))
_FROM = "FROM records JOIN kinds ON kinds.id = records.kind"

_MOST_SECONDS = 253_402_300_799

_CONDITION = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=|==|=|>|<)\s*(\S+)\s*")

# The names that a search may use; a family without records does not count.
_NAMES = {
    "base": "SELECT base AS name FROM kinds JOIN records ON records.kind = kinds.id",
    "method": "SELECT method AS name FROM kinds JOIN records ON records.kind = kinds.id",
    "tag": "SELECT name FROM tags",
    "metric": "SELECT name FROM metrics",
}

Value = str | int | float


@final
@dataclass(frozen=True, slots=True)
class Query:
    """A search for records, as SQL that the store's indexes answer; an empty one finds all.

    Args:
        base: The base model's name.
        method: The preset, or PEFT's name of the method.
        tags: Tags with these values.
        where: Conditions on metrics, such as "accuracy>=0.9"; a record without the metric is not found.
    """

    base: str | None = None
    method: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    where: Sequence[str] = ()

    def to_sql(self) -> tuple[str, list[Value]]:
        """Return a condition on `records` and `kinds`, and the values in it.

        Raises:
            SpecError: If a condition on a metric is none.
        """
        terms: list[str] = []
        values: list[Value] = []
        if self.base is not None:
            terms.append("records.kind IN (SELECT id FROM kinds WHERE base = ?)")
            values.append(self.base)
        if self.method is not None:
            terms.append("records.kind IN (SELECT id FROM kinds WHERE method = ?)")
            values.append(self.method)
        for name, value in self.tags.items():
            terms.append("records.id IN (SELECT record FROM tags WHERE name = ? AND value = ?)")
            values += [name, value]
        for condition in self.where:
            name, sign, number = _parse(condition)
            terms.append(f"records.id IN (SELECT record FROM metrics WHERE name = ? AND value {sign} ?)")
            values += [name, number]
        return " AND ".join(terms) or "1", values

    def check(self, connection: sqlite3.Connection) -> None:
        """Check that some record has the base, method, tags and metrics, unless the store is empty.

        Raises:
            SpecError: If none has one of them, with the nearest that one has.
        """
        terms = [("base", self.base), ("method", self.method), *(("tag", name) for name in self.tags)]
        terms += [("metric", _parse(condition)[0]) for condition in self.where]
        if not connection.execute("SELECT EXISTS (SELECT 1 FROM records)").fetchone()[0]:
            return
        for noun, name in terms:
            names = f"SELECT DISTINCT name FROM ({_NAMES[noun]})"
            if name is not None and connection.execute(f"{names} WHERE name = ?", (name,)).fetchone() is None:
                existing = (row[0] for row in connection.execute(names))
                raise unknown_name(f"{noun} of the adapters", name, existing)


def describe(
    name: str,
    adapter: SavedAdapter,
    *,
    created: datetime,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> Record:
    """Return the record of an adapter, without its checksum.

    Raises:
        SpecError: If a name, tag or metric cannot be stored.
    """
    check_labels(name, tags, metrics)
    family = Family.of(adapter)
    return Record(
        name=name,
        base=family.base,
        method=family.method,
        bytes=adapter.learned_bytes,
        created=created.strftime(TIME),
        digest=NO_DIGEST,
        tags={key: tags[key] for key in sorted(tags)},
        metrics={key: float(metrics[key]) for key in sorted(metrics)},
        format=_format_of(adapter),
    )


def _format_of(adapter: SavedAdapter) -> Literal[1, 2, 3, 4]:
    if digests_in(adapter.config_values):
        return BASIS_FORMAT
    if adapter.manifest_text is not None:
        return MANIFEST_FORMAT
    return ROUNDED_FORMAT if grid_of(adapter) else FORMAT


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


def put(connection: sqlite3.Connection, record: Record, adapter: SavedAdapter, *, replace: bool) -> Record:
    """Store an adapter and return its record with the checksum.

    Args:
        connection: In a transaction that may write.
        record: The result of `describe`.
        adapter: The adapter.
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
    texts = join_texts(adapter)
    family, outline, template, template_bytes = put_family(connection, Family.of(adapter), texts)
    parts = {position: put_part(connection, data) for position, data in _split_parts(adapter).items()}
    digests = [(position, digest) for position, (_, digest) in parts.items()]
    delta = deflate_texts(texts, template, template_bytes)
    record = dataclasses.replace(record, digest=digest_of(record, (outline, template, delta), digests))
    seconds = int(moment_of(record.created).timestamp())
    row = connection.execute(
        "INSERT INTO records (name, kind, format, created, config, config_bytes, digest, bytes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.name,
            family,
            record.format,
            seconds,
            delta,
            len(texts),
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
    """Read an adapter, in integers if it was put so, and its record.

    Args:
        connection: In a transaction.
        name: The record's name.

    Raises:
        AdapterFileError: If anything of it is not as it was written.
        SpecError: If there is none of this name.
    """
    row = connection.execute(
        f"SELECT {_COLUMNS}, config, config_bytes, template, template_bytes, outline, outline_bytes"
        f" {_FROM} WHERE records.name = ?",
        (name,),
    ).fetchone()
    if row is None:
        raise _unknown(connection, name)
    delta, config_bytes, template, template_bytes, outline, outline_bytes = row[_COLUMN_COUNT:]
    (record,) = _records(connection, [row[:_COLUMN_COUNT]])
    try:
        family, _ = read_outline(outline, outline_bytes)
        config, *texts = split_texts(inflate_texts(delta, config_bytes, template, template_bytes))
        parts = read_parts(connection, row[0])
        bases = read_bases(connection, row[0]) if record.format == BASIS_FORMAT else []
        digests = [*bases, *((position, digest) for position, digest, _ in parts)]
        if digest_of(record, (outline, template, delta), digests) != record.digest:
            raise damage_error("its description")
        tensors = _join_parts(family.layout, {position: data for position, _, data in parts})
        if family.layout.payload_bytes != record.bytes:
            raise damage_error("its size")
        adapter = SavedAdapter(config, family.layout, tensors, name, *texts)
        _ = adapter.manifest, adapter.certificate  # damaged ones are refused here
        if [digest.hex() for _, digest in bases] != digests_in(adapter.config_values):
            raise damage_error("the list of its bases")
    except AdapterFileError as error:
        raise AdapterFileError(f"adapter '{name}': {error}") from error
    return record, adapter


def digests(connection: sqlite3.Connection, names: Sequence[str]) -> dict[str, bytes]:
    """Return the checksums of records by name; of a name that has none there is no entry."""
    rows = connection.execute(
        f"SELECT name, digest FROM records WHERE name IN ({','.join('?' * len(names))})", names
    )
    return dict(rows.fetchall())


def names(connection: sqlite3.Connection, base: str) -> list[str]:
    """Return the names of all records of a base model, in their order."""
    rows = connection.execute(f"SELECT records.name {_FROM} WHERE base = ? ORDER BY records.name", (base,))
    return [name for (name,) in rows]


def select(
    connection: sqlite3.Connection, condition: str, values: Sequence[Value], *, limit: int
) -> list[Record]:
    """Return the records that meet a condition, by name.

    Raises:
        AdapterFileError: If one has a format that is not known here, or an impossible time.
    """
    rows = connection.execute(
        f"SELECT {_COLUMNS} {_FROM} WHERE {condition} ORDER BY records.name LIMIT {limit}", values
    ).fetchall()
    return _records(connection, rows)


def _parse(condition: str) -> tuple[str, str, float]:
    match = _CONDITION.fullmatch(condition)
    try:
        if match:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    raise SpecError(f"'{condition}' is no condition on a metric; write it like accuracy>=0.9.")


def _records(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> list[Record]:
    """Return records from their rows, with their tags and metrics."""
    tags: dict[int, dict[str, str]] = {row[0]: {} for row in rows}
    metrics: dict[int, dict[str, float]] = {row[0]: {} for row in rows}
    ids = [row[0] for row in rows]
    among = f"WHERE record IN ({','.join('?' * len(ids))})"
    for is_tag, row, name, value in connection.execute(
        f"SELECT 1, record, name, value FROM tags {among} UNION ALL"
        f" SELECT 0, record, name, value FROM metrics {among} ORDER BY 1, 2, 3",
        ids * 2,
    ):
        (tags if is_tag else metrics)[row][name] = value
    return [_record(row, tags[row[0]], metrics[row[0]]) for row in rows]


def _record(row: tuple[Any, ...], tags: dict[str, str], metrics: dict[str, float]) -> Record:
    _, name, base, method, size, seconds, digest, format_ = row
    if format_ not in FORMATS:
        raise AdapterFileError(f"adapter '{name}' has the unknown format {format_}; update rankfold.")
    if not 0 <= seconds <= _MOST_SECONDS:
        raise AdapterFileError(f"adapter '{name}': {damage_error('its time')}")
    moment = datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    return Record(name, base, method, size, moment, digest.hex(), tags, metrics, format_)


def _unknown(connection: sqlite3.Connection, name: str) -> UnknownAdapterError:
    near = connection.execute(
        "SELECT name FROM (SELECT name FROM records WHERE name >= ?1 ORDER BY name LIMIT 3)"
        " UNION SELECT name FROM (SELECT name FROM records WHERE name < ?1 ORDER BY name DESC LIMIT 3)",
        (name,),
    ).fetchall()
    hint = f"names near it are {', '.join(row[0] for row in near)}" if near else "the store is empty"
    return UnknownAdapterError(name, hint)


def _split_parts(adapter: SavedAdapter) -> dict[int, bytes]:
    """Return the bytes of an adapter's parts by position: bases, the remainder, large tensors by their index.

    A basis is there without the digest that ends its file, which is the hash of its part.
    """
    heads = set(adapter.modules_to_save)
    parts: dict[int, bytes] = {}
    small: list[bytes] = []
    for index, entry in enumerate(adapter.layout.entries):
        is_head = not heads.isdisjoint(entry.name.split("."))
        data = bytes_of(adapter.tensors[entry.name])
        if len(data) >= (SHARED_HEAD_BYTES if is_head else SHARED_BYTES):
            parts[index] = data
        else:
            small.append(data)
    bases = [content_of(digest)[:-DIGEST_BYTES] for digest in digests_in(adapter.config_values)]
    positions = range(REMAINDER - len(bases), REMAINDER)
    return (
        dict(zip(positions, bases, strict=True))
        | ({REMAINDER: b"".join(small)} if any(small) else {})
        | parts
    )


def _join_parts(layout: Layout, parts: dict[int, bytearray]) -> dict[str, Tensor]:
    """Return the tensors of an adapter from its parts."""
    large = parts.keys() - {REMAINDER}
    if not large <= set(range(len(layout.entries))):
        raise damage_error("the list of its parts")
    if not large:
        return _cut(layout.cutter, parts)
    small = Cutter([entry for index, entry in enumerate(layout.entries) if index not in large])
    tensors = _cut(small, parts)
    for index in large:
        tensors |= _cut(Cutter([layout.entries[index]]), parts, index)
    return {entry.name: tensors[entry.name] for entry in layout.entries}


def _cut(cutter: Cutter, parts: dict[int, bytearray], position: int = REMAINDER) -> dict[str, Tensor]:
    data = parts.get(position, bytearray())
    if len(data) != cutter.bytes:
        raise damage_error("the length of a part")
    return cutter.cut(data)
