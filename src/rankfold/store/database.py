"""The SQLite file of a store: its tables, its migrations, and transactions on it.

records  one adapter: name, family, changes of its configuration, and a checksum over all of it
kinds    families: base, method, table of tensors, and a template of their configurations
parts    bytes by their hash: a head, a large tensor, or the remainder of one record
pieces   the bytes of the parts, in pieces, so that pages are full
uses     the parts of each record
tags, metrics  labels to search by

The migrations are numbered steps from an empty file; a step that was published never changes.
"""

import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal, final
from urllib.parse import quote

from rankfold.errors import FullStoreError, NoStoreError, SpecError, StoreError
from rankfold.files import fresh_file, try_lock

logger = logging.getLogger("rankfold.store")

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

Mode = Literal["create", "write", "read"]

_OPEN = {"create": "rw", "write": "rw", "read": "ro"}
_RETRY_SECONDS = 0.02
_TURN_SECONDS = 0.002
_WRITING = "BEGIN IMMEDIATE"
_OLDEST_SQLITE = (3, 37)

_PRAGMAS = (
    "foreign_keys = ON",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "synchronous = FULL",  # what was committed outlives a power cut, too
)

_REASONS = {
    "BUSY": "is busy; another process has been writing for too long, try again",
    "LOCKED": "is busy; another process has been writing for too long, try again",
    "FULL": "cannot grow, the disk is full; nothing was changed, make room and try again",
    "READONLY": "cannot be written; check the permissions of the file and of its folder",
    "CANTOPEN": "cannot be opened; check the path and the permissions of the folder",
    "PERM": "cannot be opened; check its permissions",
    "CORRUPT": "is damaged; restore a copy, or export the adapters in which `verify` finds no fault",
    "NOTADB": "is no store; name a file that `rankfold store put` made",
    "IOERR": "cannot be read or written by the system; nothing was changed, check the disk and its free room",
    "TOOBIG": "cannot hold a value of this size; nothing was changed",
}
_ERRORS = {"NOTADB": NoStoreError, "FULL": FullStoreError}


@final
class Database:
    """One connection to a store's file, for any number of threads of one process at a time.

    Args:
        path: The file.
        mode: "create" makes it if there is none, "write" needs it to exist, "read" never changes it.
        wait: Seconds to wait for another process that is writing.
        cache_kib: The most KiB of pages that are kept in memory; by default the indexes of a hundred thousand
            adapters fit.
    """

    def __init__(self, path: Path, mode: Mode, wait: float, *, cache_kib: int = 32768) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old for a store; update Python.")
        self.path = path
        self._mode: Mode = mode
        self._wait = wait
        self._pragmas = (*_PRAGMAS, f"cache_size = -{cache_kib}")
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._inherited: list[sqlite3.Connection] = []
        self._file = (0, 0)
        self._connection = self._open()

    def close(self) -> None:
        """Close the file; changes that are not committed are lost."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """Read one state of the store, even while another process writes.

        Raises:
            StoreError: If it cannot be read.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Generator[sqlite3.Connection]:
        """Change the store, all or nothing; within another `write` it is a part of that one.

        Raises:
            StoreError: If it cannot be written, or was opened for reading.
        """
        if self._mode == "read":
            raise StoreError(f"'{self.path}' was opened for reading; open it for writing.")
        with self._transaction(_WRITING) as connection:
            yield connection

    @contextmanager
    def plain(self) -> Generator[sqlite3.Connection]:
        """Give the connection without a transaction, for statements that SQLite allows in none."""
        with self._lock, self._translate_errors():
            self._reopen_if_needed()
            yield self._connection

    @contextmanager
    def _transaction(self, begin: str) -> Generator[sqlite3.Connection]:
        with self._lock, self._translate_errors():
            self._reopen_if_needed()
            if self._connection.in_transaction:
                transaction = _savepoint(self._connection)
            else:
                self._begin(begin)
                transaction = _commit_or_roll_back(self._connection)
            with transaction:
                yield self._connection

    def _begin(self, statement: str) -> None:
        """Begin a transaction; writers take turns.

        SQLite alone gives its lock to whoever asks at the right moment, mostly to the process that had it. So
        one process waits for it, and the others wait for that one: for a lock on the store's folder.
        """
        if statement != _WRITING or os.name != "posix":
            self._connection.execute(statement)
            return
        handle = os.open(self.path.parent, os.O_RDONLY)
        try:
            end = time.monotonic() + self._wait
            while not try_lock(handle) and time.monotonic() < end:
                _pause()
            self._connection.execute("PRAGMA busy_timeout = 0")
            while not _try_begin(self._connection, is_last=time.monotonic() >= end):
                _pause()
        finally:
            os.close(handle)
            self._connection.execute(f"PRAGMA busy_timeout = {round(self._wait * 1000)}")

    @property
    def version(self) -> tuple[int, ...]:
        """Differs once another connection has changed the store, or another file has taken its place.

        Raises:
            StoreError: If it cannot be read.
        """
        with self.plain() as connection:
            (changes,) = connection.execute("PRAGMA data_version").fetchone()
            return self._pid, *self._file, changes

    def _reopen_if_needed(self) -> None:
        # A connection that two processes share destroys the file.
        if self._pid != os.getpid():
            # Closing it here would end the parent's transaction, so it stays open.
            self._inherited.append(self._connection)
            self._connection, self._pid = self._open(), os.getpid()
        elif self._mode == "read" and not self._connection.in_transaction and self._file != self._find_file():
            before, self._connection = self._connection, self._open()
            before.close()

    def _find_file(self) -> tuple[int, int]:
        """Return which file has the store's path: a reader that lives long must not read an earlier one."""
        try:
            status = self.path.stat()
        except OSError:
            return 0, 0
        return status.st_dev, status.st_ino

    def _open(self) -> sqlite3.Connection:
        if self._mode != "create" and not self.path.is_file():
            raise NoStoreError(f"there is no store '{self.path}'; name one that `rankfold store put` made.")
        with self._translate_errors():
            if self._mode == "create" and not self.path.exists():
                self._create()
            file = self._find_file()
            connection = self._connect(self.path, self._options())
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._file = file
            return connection

    def _create(self) -> None:
        """Make the file, which appears with all its tables."""
        try:
            with fresh_file(self.path.resolve()) as draft:
                connection = self._connect(draft, "mode=rw")
                try:
                    self._begin_file(connection)
                    self._migrate(connection, 0)
                finally:
                    connection.close()
        except OSError as error:
            raise StoreError(f"'{self.path}' {_REASONS['CANTOPEN']} ({error.strerror}).") from error

    def _options(self) -> str:
        wal = self.path.with_name(f"{self.path.name}-wal")
        # Where nothing may be written, SQLite cannot share the file with a writer, and need not.
        alone = self._mode == "read" and not os.access(self.path.parent, os.W_OK) and not wal.exists()
        return f"mode={_OPEN[self._mode]}{'&immutable=1' if alone else ''}"

    def _connect(self, path: Path, options: str) -> sqlite3.Connection:
        address = f"file:{quote(str(path.absolute()))}?{options}"
        connection = sqlite3.connect(
            address, uri=True, timeout=self._wait, isolation_level=None, check_same_thread=False
        )
        for pragma in self._pragmas:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check that this is a store, and make it one of the newest version."""
        with _transaction(connection, "BEGIN"):
            version = self._version(connection)
        if version == VERSION:
            return
        if self._mode == "read":
            raise StoreError(f"'{self.path}' has version {version} of {VERSION}; open it once for writing.")
        with _transaction(connection, _WRITING):
            # Another process may have done it by now.
            self._migrate(connection, self._version(connection))

    def _migrate(self, connection: sqlite3.Connection, version: int) -> None:
        """Bring the tables of a file from a version to the newest."""
        with _savepoint(connection):
            for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in statements:
                    connection.execute(statement)
                logger.info("store '%s' has version %d", self.path, number)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _version(self, connection: sqlite3.Connection) -> int:
        (mark,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = _tables(connection)
        if not tables and mark == version == 0:
            raise NoStoreError(
                f"'{self.path}' is empty, and no store begins so; remove the file, or name another."
            )
        if mark != APPLICATION_ID or version < 1 or (version <= VERSION and tables != _tables_of(version)):
            raise NoStoreError(f"'{self.path}' {_REASONS['NOTADB']}.")
        if version > VERSION:
            raise StoreError(
                f"'{self.path}' has version {version} and this is for {VERSION}; update rankfold."
            )
        return version

    def _begin_file(self, connection: sqlite3.Connection) -> None:
        """Set the options that SQLite takes only before the first table."""
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        end = time.monotonic() + self._wait
        while True:
            # SQLite does not wait by itself for this one.
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return

    @contextmanager
    def _translate_errors(self) -> Generator[None]:
        """Turn an error of SQLite into one sentence with a remedy."""
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            code: str = getattr(error, "sqlite_errorname", "") or ""
            word = code.removeprefix("SQLITE_").split("_")[0]
            reason = _REASONS.get(word, f"cannot be used ({error}); check the file and its folder")
            raise _ERRORS.get(word, StoreError)(f"'{self.path}' {reason}.") from error
        except UnicodeDecodeError as error:
            raise StoreError(f"'{self.path}' {_REASONS['CORRUPT']}.") from error
        except UnicodeEncodeError as error:
            raise SpecError(f"{error.object!r} is no valid text; write it in UTF-8.") from error


def _pause() -> None:
    time.sleep(random.uniform(0, _TURN_SECONDS))  # noqa: S311 (no secret)


def _try_begin(connection: sqlite3.Connection, *, is_last: bool) -> bool:
    try:
        connection.execute(_WRITING)
    except sqlite3.OperationalError as error:
        if is_last or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Generator[None]:
    """Do all of it or nothing."""
    connection.execute(begin)
    with _commit_or_roll_back(connection):
        yield


@contextmanager
def _commit_or_roll_back(connection: sqlite3.Connection) -> Generator[None]:
    """End a transaction that has begun: with all of it, or with nothing."""
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def _savepoint(connection: sqlite3.Connection) -> Generator[None]:
    """Do all of it or nothing, and leave the transaction around it as it was."""
    connection.execute("SAVEPOINT nested")
    try:
        yield
    except BaseException:
        # A full disk has ended the whole transaction.
        if connection.in_transaction:
            connection.execute("ROLLBACK TO nested")
            connection.execute("RELEASE nested")
        raise
    connection.execute("RELEASE nested")


def _tables(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """Return every table, index, view and trigger as it was declared."""
    return set(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))


@cache
def _tables_of(version: int) -> set[tuple[str, str]]:
    """Return the tables of a version; others are refused, since a trigger would run on our statements."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in chain.from_iterable(MIGRATIONS[:version]):
            connection.execute(statement)
        return _tables(connection)
