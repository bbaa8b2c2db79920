"""The adapter store: put, get, find, check and move adapters in one file."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self, final

from torch import nn

from rankfold.store.adapter import SavedAdapter
from rankfold.store.certificate import RoundingCertificate
from rankfold.store.database import Database, Mode
from rankfold.store.maintenance import Fault, FreedRoom, Stats, collect, statistics, verify
from rankfold.store.record import Record
from rankfold.store.rounding import Dtype, restore, round_adapter
from rankfold.store.rows import Query, describe, has, load, put, remove, select
from rankfold.store.saved import open_adapter
from rankfold.store.transfer import Existing, read_stream, write_stream

if TYPE_CHECKING:
    from peft import PeftModel

_PAGE_RECORDS = 500
_PAGE_ADAPTERS = 100


@final
class AdapterStore:
    """Many adapters in one SQLite file, which several processes may read and write at once.

    A change is there whole or not at all, also after `kill -9`. Whatever is read is proved by its checksum.

    Args:
        path: The file. Beside it, while it is open, lie its `-wal` and `-shm`.
        mode: "create" makes it if there is none, "write" needs it to exist, "read" never changes it.
        wait: Seconds to wait for another process that is writing.

    Raises:
        StoreError: If the file is no store, or cannot be opened in this mode.
    """

    def __init__(self, path: str | Path, mode: Mode = "create", *, wait: float = 30.0) -> None:
        self.path = Path(path)
        self._database = Database(self.path, mode, wait)

    def put(
        self,
        name: str,
        adapter: SavedAdapter | str | Path,
        *,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        dtype: Dtype | None = None,
        certificate: RoundingCertificate | None = None,
        replace: bool = False,
    ) -> Record:
        """Store an adapter.

        Args:
            name: Its key: letters, digits and `_ . @ : = + / -`.
            adapter: As for `open_adapter`.
            tags: Texts to find it by, such as `{"customer": "a"}`.
            metrics: Measured numbers, such as `{"accuracy": 0.93}`.
            dtype: Round the floating-point tensors to this type; `get` then gives that type, or for a
                type of integers rounded numbers in the original types.
            certificate: The measured change by the rounding, which is stored with the adapter.
            replace: Whether to replace an adapter of this name, with its tags and metrics.

        Raises:
            AdapterFileError: If the adapter is damaged, or a value is not finite or too large for the type.
            OutputExistsError: If the name is taken.
            SpecError: If a name, tag or metric cannot be stored.
            StoreError: If the store cannot be written; it is then as it was.
        """
        adapter = open_adapter(adapter)
        adapter.check_finite()
        if dtype is not None:
            adapter = round_adapter(adapter, dtype, certificate)
        record = describe(name, adapter, created=datetime.now(UTC), tags=tags or {}, metrics=metrics or {})
        with self._database.write() as connection:
            return put(connection, record, adapter, replace=replace)

    def get(self, name: str) -> SavedAdapter:
        """Return an adapter, byte for byte as it was put, or rounded if it was put in integers.

        Raises:
            SpecError: If there is none of this name.
            AdapterFileError: If it is damaged.
            StoreError: If the store cannot be read.
        """
        return restore(self._load(name)[1])

    def get_many(self, names: Iterable[str]) -> Iterator[tuple[str, SavedAdapter]]:
        """Yield adapters in the order of their names as given; faster than one `get` after another.

        Raises:
            SpecError: If there is none of a name.
            AdapterFileError: If one is damaged.
            StoreError: If the store cannot be read.
        """
        pending = iter(names)
        while page := list(islice(pending, _PAGE_ADAPTERS)):
            with self._database.read() as connection:
                adapters = [(name, restore(load(connection, name)[1])) for name in page]
            yield from adapters

    def record(self, name: str) -> Record:
        """Return the record of an adapter.

        Raises:
            SpecError: If there is none of this name.
            AdapterFileError: If it is damaged.
            StoreError: If the store cannot be read.
        """
        return self._load(name)[0]

    def list(
        self,
        *,
        base: str | None = None,
        method: str | None = None,
        tags: Mapping[str, str] | None = None,
        where: Sequence[str] = (),
    ) -> Iterator[Record]:
        """Yield the records in the order of their names, a page at a time, without holding up a writer.

        Args:
            base: Only of this base model.
            method: Only of this preset, or PEFT method.
            tags: Only with these tags.
            where: Only those that meet these conditions on metrics, such as `["accuracy>=0.9"]`.

        Raises:
            SpecError: If a condition is none, or a base, method, tag or metric is one that no adapter has.
            StoreError: If the store cannot be read.
        """
        query = Query(base, method, tags or {}, where)
        condition, values = query.to_sql()
        with self._database.read() as connection:
            query.check(connection)
        return self._pages(condition, values)

    def delete(self, name: str) -> None:
        """Remove an adapter; `gc` gives its room back.

        Raises:
            SpecError: If there is none of this name.
            StoreError: If the store cannot be written; it is then as it was.
        """
        with self._database.write() as connection:
            remove(connection, name)

    @contextmanager
    def batch(self) -> Generator[None]:
        """Do many changes as one: faster, and all of them or none.

        Raises:
            StoreError: If the store cannot be written; it is then as it was.
        """
        with self._database.write():
            yield

    def load_into(self, model: nn.Module, names: Sequence[str] | Mapping[str, str]) -> "PeftModel":
        """Put adapters on a model, as PEFT would load them from directories.

        Args:
            model: A PEFT model, which gets them beside its own, or their base model.
            names: Adapters of the store; or these with their names in the model, which may have no ".".

        Returns:
            The PEFT model, in evaluation mode. A base model starts with the first adapter active.

        Raises:
            AdapterFileError: If one is damaged, or does not fit the model.
            SpecError: If a name is unknown, or taken in the model.
        """
        from rankfold.store.loading import load_into  # PEFT is slow to import

        pairs = names if isinstance(names, Mapping) else {name: name for name in names}
        adapters = (adapter for _, adapter in self.get_many(pairs))
        return load_into(model, dict(zip(pairs.values(), adapters, strict=True)))

    def verify(self) -> Iterator[Fault]:
        """Yield the faults of the store; none, if every byte is as it was written.

        Raises:
            StoreError: If the file is too damaged to be looked through.
        """
        return verify(self._database)

    def stats(self) -> Stats:
        """Count the content of the store, and the room it takes.

        Raises:
            StoreError: If the store cannot be read.
        """
        return statistics(self._database)

    def gc(self) -> FreedRoom:
        """Remove the parts that no adapter uses any more, and give their room back to the disk.

        Raises:
            SpecError: If it is called within a batch.
            StoreError: If the store cannot be written; it is then as it was.
        """
        return collect(self._database)

    def export(self, url: str, records: Iterable[Record] | None = None, *, overwrite: bool = False) -> int:
        """Write adapters to one file, wherever fsspec reaches; it appears when it is whole.

        Args:
            url: A path or an address such as `s3://bucket/adapters`.
            records: The records to write, such as the result of `list`; all if not given.
            overwrite: Whether to replace what is there.

        Returns:
            How many there were.

        Raises:
            AdapterFileError: If one is damaged.
            OutputExistsError: If something is there already, or a folder.
            StoreError: If the store cannot be read, or the file not written.
        """
        selection = self.list() if records is None else records
        return write_stream(url, (self._load(record.name) for record in selection), overwrite=overwrite)

    def import_(self, url: str, *, existing: Existing = "refuse") -> int:
        """Put the adapters of an exported file, with their tags, metrics and times.

        Args:
            url: A file that `export` wrote.
            existing: How a name that is taken is treated: refuse the file, skip the adapter, or replace it.

        Returns:
            How many were put. The file is imported whole or not at all.

        Raises:
            AdapterFileError: If the file is damaged, or a record contradicts its adapter.
            OutputExistsError: If a name is taken and `existing` is "refuse".
            StoreError: If the file cannot be read, or the store not written.
        """
        count = 0
        with self._database.write() as connection:
            for record, adapter in read_stream(url):
                if existing == "skip" and has(connection, record.name):
                    continue
                put(connection, record, adapter, replace=existing == "replace")
                count += 1
        return count

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __len__(self) -> int:
        """Return how many adapters there are."""
        with self._database.read() as connection:
            return connection.execute("SELECT count(*) FROM records").fetchone()[0]

    def __contains__(self, name: str) -> bool:
        """Whether there is an adapter of this name."""
        with self._database.read() as connection:
            return has(connection, name)

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def _load(self, name: str) -> tuple[Record, SavedAdapter]:
        with self._database.read() as connection:
            return load(connection, name)

    def _pages(self, condition: str, values: Sequence[str | int | float]) -> Iterator[Record]:
        last = ""
        while True:
            with self._database.read() as connection:
                page = select(
                    connection, f"({condition}) AND records.name > ?", [*values, last], limit=_PAGE_RECORDS
                )
            yield from page
            if len(page) < _PAGE_RECORDS:
                return
            last = page[-1].name
