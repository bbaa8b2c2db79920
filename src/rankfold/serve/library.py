"""The library of a bank: adapters in memory, ready to be put into slots, from a store or added by hand."""

import re
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar, final
from weakref import WeakValueDictionary

from torch import Tensor, nn

from rankfold.errors import UnknownAdapterError
from rankfold.serve.frame import Frames
from rankfold.serve.template import Template, kind_of
from rankfold.store.adapter import SavedAdapter
from rankfold.store.database import Database
from rankfold.store.manifest import Manifest
from rankfold.store.record import Record
from rankfold.store.rounding import restore
from rankfold.store.rows import digests, load, select
from rankfold.store.saved import open_adapter
from rankfold.store.sharing import Family
from rankfold.store.store import AdapterStore
from rankfold.store.weights import Layout

_MOST_TEMPLATES = 256
_MOST_CONFIGS = 4096
_MOST_NAMES = 1 << 20
_WAIT_SECONDS = 30.0
_PAGES_KIB = 4096  # adapters are read once and then kept here, so pages of theirs would be kept twice

_Value = TypeVar("_Value")


@final
class ReadyAdapter:
    """An adapter in memory.

    Args:
        digest: What it is, whatever its name.
        template: That of its kind.
        values: Its numbers, for each of the template's frames; None if only its slots have them.
        manifest_text: The text of its manifest, if it has one.
    """

    __slots__ = ("__weakref__", "digest", "manifest_text", "template", "values")

    def __init__(
        self,
        digest: Hashable,
        template: Template,
        values: Sequence[Tensor] | None,
        manifest_text: bytes | None,
    ) -> None:
        self.digest, self.template, self.values = digest, template, values
        self.manifest_text = manifest_text

    def without_values(self) -> "ReadyAdapter":
        """Return the adapter without its numbers, for as long as they are in slots."""
        return ReadyAdapter(self.digest, self.template, None, self.manifest_text)

    @property
    def manifest(self) -> Manifest | None:
        """Its manifest, if it has one."""
        return None if self.manifest_text is None else Manifest.from_json(self.manifest_text)

    @property
    def bytes(self) -> int:
        """The bytes of its numbers and its manifest."""
        return sum(numbers.nbytes for numbers in self.values or ()) + len(self.manifest_text or b"")


@final
@dataclass(frozen=True, slots=True)
class ListedAdapter:
    """An adapter in a list.

    Args:
        name: Its name.
        method: The preset, or PEFT's name of the method in lower case.
        record: That of the store; None if it is in no store.
    """

    name: str
    method: str
    record: Record | None = None


def fits_pattern(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of some names, or begins as one of those that end in `*`."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )


def _glob(pattern: str) -> str:
    """Return a pattern of `fits_pattern` in SQLite's spelling, where other letters have a meaning, too."""
    start, star = (pattern[:-1], "*") if pattern.endswith("*") else (pattern, "")
    return re.sub(r"[*?\[]", r"[\g<0>]", start) + star


@final
@dataclass(frozen=True, slots=True)
class LibraryStats:
    """Counts of a library since it was made.

    Args:
        hits: Adapters that were found in memory.
        loads: Adapters that were read from the store.
        host_bytes: Bytes of those in memory now that may give way to others.
    """

    hits: int
    loads: int
    host_bytes: int


@final
class Library:
    """Adapters of one base model in memory, by name.

    Names are looked up in the store again whenever another connection has changed it, so that a replaced or
    deleted adapter is so at once.

    Args:
        model: The base model.
        frames: Its frames.
        store: A store, or its file; None for adapters that are added by hand alone.
        host_bytes: The most bytes that are kept; the least recently used give way.

    Raises:
        StoreError: If the store cannot be read.
    """

    def __init__(
        self, model: nn.Module, frames: Frames, store: AdapterStore | str | Path | None, host_bytes: int
    ) -> None:
        self._model, self._frames, self._host_bytes = model, frames, host_bytes
        path = store.path if isinstance(store, AdapterStore) else store
        # A connection of its own: SQLite reports the changes of others only.
        self._database = (
            None if path is None else Database(Path(path), "read", _WAIT_SECONDS, cache_kib=_PAGES_KIB)
        )
        self._lock = threading.RLock()
        self._added: dict[str, ReadyAdapter] = {}
        self._methods: dict[str, str] = {}
        self._numbers = count()
        self._templates: _Recent[Hashable, Template] = _Recent(_MOST_TEMPLATES)
        self._kinds: _Recent[bytes, tuple[Layout, Template]] = _Recent(_MOST_CONFIGS)
        self._version: tuple[int, ...] | None = None
        self._digests: dict[str, bytes] = {}
        self._cached: OrderedDict[Hashable, ReadyAdapter] = OrderedDict()
        self._loaded: dict[str, Hashable] = {}  # what each name was read as last
        # Adapters in slots, without their numbers, which need not be in the cache.
        self._placed: WeakValueDictionary[Hashable, ReadyAdapter] = WeakValueDictionary()
        self._hits = self._loads = self._bytes = 0

    def add(self, name: str, adapter: SavedAdapter | str | Path) -> None:
        """Serve an adapter that is in no store, under a name; it stays in memory until it is removed.

        Raises:
            AdapterFileError: If it is damaged, or belongs to another model.
            SpecError: If it has something that a bank cannot serve.
        """
        saved = open_adapter(adapter)
        with self._lock:
            self._added[name] = self._prepare(next(self._numbers), saved)
            self._methods[name] = Family.of(saved).method

    def check(self, adapter: SavedAdapter | str | Path) -> None:
        """Check that an adapter can be served.

        Raises:
            AdapterFileError: If it is damaged, or belongs to another model.
            SpecError: If it has something that a bank cannot serve.
        """
        saved = open_adapter(adapter)
        with self._lock:
            _ = self._prepare(None, saved)

    def remove(self, name: str) -> None:
        """Stop serving an adapter that was added.

        Raises:
            SpecError: If there is none of this name.
        """
        with self._lock:
            if self._added.pop(name, None) is None:
                raise self._unknown(name)

    def has(self, name: str) -> bool:
        """Whether there is an adapter of this name now.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._lock:
            if name in self._added or self._database is None:
                return name in self._added
            with self._database.read() as connection:
                return bool(digests(connection, [name]))

    def page(self, patterns: Sequence[str], after: str, limit: int) -> list[ListedAdapter]:
        """Return adapters in the order of their names.

        Args:
            patterns: Names, or beginnings of names that end in `*`, of which one fits each adapter.
            after: Only names behind this one.
            limit: The most adapters.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._lock:
            names = {name for name in self._added if name > after and fits_pattern(name, patterns)}
            listed = [ListedAdapter(name, self._methods[name]) for name in names]
            if self._database is not None:
                condition = " OR ".join(["records.name GLOB ?"] * len(patterns)) or "0"
                with self._database.read() as connection:
                    listed += [
                        ListedAdapter(record.name, record.method, record)
                        for record in select(
                            connection,
                            f"records.name > ? AND ({condition})",
                            [after, *map(_glob, patterns)],
                            limit=limit + len(names),
                        )
                        if record.name not in names
                    ]
        return sorted(listed, key=lambda adapter: adapter.name)[:limit]

    def find(self, names: Sequence[str]) -> dict[str, ReadyAdapter]:
        """Return adapters by name, read from the store where they are not in memory.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If there is none of a name, or it cannot be served.
            StoreError: If the store cannot be read.
        """
        with self._lock:
            ready = {name: self._added[name] for name in names if name in self._added}
            others = [name for name in names if name not in ready]
            if others and self._database is None:
                raise self._unknown(others[0])
            if others and self._database is not None:
                ready |= self._find_stored(self._database, others)
            return ready

    def _unknown(self, name: str) -> UnknownAdapterError:
        names = ", ".join(sorted(self._added)) or "none"
        return UnknownAdapterError(name, f"those that were added are: {names}")

    def _find_stored(self, database: Database, names: Sequence[str]) -> dict[str, ReadyAdapter]:
        version = database.version
        if version != self._version or len(self._digests) > _MOST_NAMES:
            self._digests, self._version = {}, version
        ready = {name: adapter for name in names if (adapter := self._in_memory(name)) is not None}
        self._hits += len(ready)
        if len(ready) < len(names):
            with database.read() as connection:
                self._digests |= digests(connection, [name for name in names if name not in self._digests])
                for name in names:
                    if name not in ready:
                        ready[name] = self._in_memory(name) or self._load(connection, name)
        return ready

    def _in_memory(self, name: str) -> ReadyAdapter | None:
        digest = self._digests.get(name)
        if digest in self._cached:
            self._cached.move_to_end(digest)
            return self._cached[digest]
        return None if digest is None else self._placed.get(digest)

    def note_placed(self, adapter: ReadyAdapter) -> ReadyAdapter:
        """Return an adapter without its numbers; while it is referred to, it is not read from the store."""
        with self._lock:
            placed = self._placed[adapter.digest] = adapter.without_values()
            return placed

    def _load(self, connection: sqlite3.Connection, name: str) -> ReadyAdapter:
        record, saved = load(connection, name)
        digest = self._digests[name] = bytes.fromhex(record.digest)
        adapter = self._prepare(digest, restore(saved))
        self._loads += 1
        self._forget(self._loaded.get(name))  # nobody asks for a replaced adapter any more
        if len(self._loaded) >= _MOST_NAMES:
            self._loaded.clear()
        self._loaded[name] = digest
        self._forget(digest)
        self._cached[digest] = adapter
        self._bytes += adapter.bytes
        while self._bytes > self._host_bytes and self._cached:
            self._forget(next(iter(self._cached)))
        return adapter

    def _forget(self, digest: Hashable) -> None:
        old = self._cached.pop(digest, None)
        self._bytes -= old.bytes if old else 0

    def _prepare(self, digest: Hashable, saved: SavedAdapter) -> ReadyAdapter:
        layout, template = self._kinds.get(saved.config) or (None, None)
        if template is None or layout is None or layout.entries != saved.layout.entries:
            kind = kind_of(saved)
            template = self._templates.get(kind) or Template(saved, self._model, self._frames)
            self._templates.put(kind, template)
            self._kinds.put(saved.config, (saved.layout, template))
        return ReadyAdapter(digest, template, template.values(saved), saved.manifest_text)

    @property
    def stats(self) -> LibraryStats:
        """Counts since the library was made."""
        return LibraryStats(self._hits, self._loads, self._bytes)

    def close(self) -> None:
        """Close the store's file."""
        if self._database is not None:
            self._database.close()


_Key = TypeVar("_Key")


class _Recent(Generic[_Key, _Value]):
    """The entries that were used last.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        """Return an entry, if it is there."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: _Key, value: _Value) -> None:
        """Add an entry, or put another in its place."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)
