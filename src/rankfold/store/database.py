"""The SQLite file of a store: opened, brought up to date, read and written in transactions."""

import logging
import os
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

from rankfold.errors import NoStoreError, SpecError, StoreError
from rankfold.store.schema import APPLICATION_ID, MIGRATIONS, PAGE_BYTES, VERSION

logger = logging.getLogger("rankfold.store")

Mode = Literal["create", "write", "read"]

_OPEN = {"create": "rwc", "write": "rw", "read": "ro"}
_RETRY_SECONDS = 0.02
_OLDEST_SQLITE = (3, 37)

_PRAGMAS = (
    "foreign_keys = ON",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "synchronous = FULL",  # what was committed outlives a power cut, too
    "cache_size = -32768",  # KiB at most; the indexes of a hundred thousand adapters fit
)

_REASONS = {
    "BUSY": "is busy; another process has been writing for too long, try again",
    "LOCKED": "is busy; another process has been writing for too long, try again",
    "FULL": "cannot grow, the disk is full; nothing was changed, make room and try again",
    "READONLY": "cannot be written; check the permissions of the file and of its folder",
    "CANTOPEN": "cannot be opened; check the path and the permissions of the folder",
    "PERM": "cannot be opened; check its permissions",
    "CORRUPT": "is damaged; restore a copy, or export what `verify` finds whole",
    "NOTADB": "is no store; name a file that `rankfold store put` made",
    "IOERR": "cannot be read or written by the system; nothing was changed, check the disk and its free room",
    "TOOBIG": "cannot hold a value of this size; nothing was changed",
}


@final
class Database:
    """One connection to a store's file, for any number of threads of one process at a time.

    Args:
        path: The file.
        mode: "create" makes it if there is none, "write" wants it to be there, "read" never changes it.
        wait: Seconds to wait for another process that is writing.
    """

    def __init__(self, path: Path, mode: Mode, wait: float) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old for a store; update Python.")
        self.path = path
        self._mode: Mode = mode
        self._wait = wait
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._inherited: list[sqlite3.Connection] = []
        self._connection = self._open()

    def close(self) -> None:
        """Close the file; what is not committed is forgotten."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """See one state of the store, whatever is written meanwhile.

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
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def plain(self) -> Generator[sqlite3.Connection]:
        """Give the connection without a transaction, for what SQLite does in none."""
        with self._lock, self._translated():
            self._leave_the_parent()
            yield self._connection

    @contextmanager
    def _transaction(self, begin: str) -> Generator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._leave_the_parent()
            nested = self._connection.in_transaction
            with _nested(self._connection) if nested else _transaction(self._connection, begin):
                yield self._connection

    def _leave_the_parent(self) -> None:
        # A connection that two processes share destroys the file.
        if self._pid != os.getpid():
            # Closing it here would end what the parent does, so it is kept.
            self._inherited.append(self._connection)
            self._connection, self._pid = self._open(), os.getpid()

    def _open(self) -> sqlite3.Connection:
        if self._mode != "create" and not self.path.is_file():
            raise NoStoreError(f"there is no store '{self.path}'; name one that `rankfold store put` made.")
        with self._translated():
            connection = self._connect(f"file:{quote(str(self.path.absolute()))}?{self._options()}")
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def _options(self) -> str:
        wal = self.path.with_name(f"{self.path.name}-wal")
        # Where nothing may be written, SQLite cannot share the file with a writer, and need not.
        alone = self._mode == "read" and not os.access(self.path.parent, os.W_OK) and not wal.exists()
        return f"mode={_OPEN[self._mode]}{'&immutable=1' if alone else ''}"

    def _connect(self, address: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            address, uri=True, timeout=self._wait, isolation_level=None, check_same_thread=False
        )
        for pragma in _PRAGMAS:
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
        if version == 0:
            self._begin_file(connection)
        with _transaction(connection, "BEGIN IMMEDIATE"):
            # Another process may have done it by now.
            version = self._version(connection)
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
        if not tables and mark == version == 0 and self._mode == "create":
            return 0
        if mark != APPLICATION_ID or version < 1 or (version <= VERSION and tables != _expected(version)):
            raise NoStoreError(f"'{self.path}' {_REASONS['NOTADB']}.")
        if version > VERSION:
            raise StoreError(
                f"'{self.path}' has version {version} and this is for {VERSION}; update rankfold."
            )
        return version

    def _begin_file(self, connection: sqlite3.Connection) -> None:
        """Set what has to be set before the first table."""
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
    def _translated(self) -> Generator[None]:
        """Turn what SQLite says into one sentence that says what to do."""
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            code: str = getattr(error, "sqlite_errorname", "") or ""
            word = code.removeprefix("SQLITE_").split("_")[0]
            reason = _REASONS.get(word, f"cannot be used ({error}); check the file and its folder")
            kind = NoStoreError if word == "NOTADB" else StoreError
            raise kind(f"'{self.path}' {reason}.") from error
        except UnicodeEncodeError as error:
            raise SpecError(f"{error.object!r} is no valid text; write it in UTF-8.") from error


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Generator[None]:
    """Do all of it or nothing."""
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def _nested(connection: sqlite3.Connection) -> Generator[None]:
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
def _expected(version: int) -> set[tuple[str, str]]:
    """Return what a store of a version has, and nothing else may have: a trigger would act on our words."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in chain.from_iterable(MIGRATIONS[:version]):
            connection.execute(statement)
        return _tables(connection)
