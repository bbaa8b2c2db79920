"""Rows of a Parquet or Arrow file, read in small batches and counted before they are kept."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from rankfold.errors import DataError
from rankfold.tasks.data.decode import check_size, is_compressed, read_bytes, reason_of
from rankfold.tasks.data.table import FileRows, Row, quote_list

_BATCH_ROWS = 512
_ROW_BYTES = 64  # what a row costs however little is in it


def read_parquet(path: Path, max_bytes: int) -> FileRows:
    """Return the rows of a Parquet file.

    Raises:
        DataError: If it is damaged, or larger than allowed.
    """
    parquet = _library(path, "parquet")
    with _reading(path):
        file = parquet.ParquetFile(_source(path, max_bytes))
        groups = range(file.metadata.num_row_groups)
        check_size(path, sum(file.metadata.row_group(index).total_byte_size for index in groups), max_bytes)
        return _rows(path, file.schema_arrow, file.iter_batches(batch_size=_BATCH_ROWS), max_bytes)


def read_arrow(path: Path, max_bytes: int) -> FileRows:
    """Return the rows of an Arrow file, as `save_to_disk` of the library `datasets` writes it.

    Raises:
        DataError: If it is damaged, or larger than allowed.
    """
    ipc = _library(path, "ipc")
    with _reading(path):
        source = _source(path, max_bytes)
        check_size(path, source.size(), max_bytes)
        if source.read(6) == b"ARROW1":
            file = ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            source.seek(0)
            file = ipc.open_stream(source)
            batches = iter(file)
        return _rows(path, file.schema, batches, max_bytes)


def _library(path: Path, module: str) -> Any:
    try:
        return import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise DataError(
            f"reading '{path}' takes the package 'pyarrow'; install it with `pip install 'rankfold[bench]'`."
        ) from error


@contextmanager
def _reading(path: Path) -> Generator[None]:
    import pyarrow

    try:
        yield
    except DataError:
        raise
    except (
        cast(Any, pyarrow).ArrowException,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        ValueError,
    ) as error:
        raise DataError(
            f"cannot read '{path}' ({reason_of(error)}); check that the file is whole."
        ) from error


def _source(path: Path, max_bytes: int) -> Any:
    import pyarrow

    library = cast(Any, pyarrow)
    if is_compressed(path):
        return library.BufferReader(read_bytes(path, max_bytes))
    return library.memory_map(str(path))


def _rows(path: Path, schema: Any, batches: Iterator[Any], max_bytes: int) -> FileRows:
    names: list[str] = list(schema.names)
    if len(set(names)) < len(names):
        duplicate_names = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        raise DataError(f"'{path}' has {quote_list(duplicate_names)} twice; rename one of the columns.")
    rows: list[Row] = []
    size = 0
    for batch in map(_decode_batch, batches):
        size += cast(int, batch.nbytes) + _ROW_BYTES * cast(int, batch.num_rows)
        check_size(path, size, max_bytes)
        batch.validate(full=True)
        rows += map(_plain_values, cast("list[Row]", batch.to_pylist()))
    return FileRows(rows, class_names=_class_names(schema.metadata or {}), size=size)


def _plain_values(row: Row) -> Row:
    """Return a row as JSON has it: decimals as numbers, dates and times as ISO texts."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: object) -> object:
    match value:
        case Decimal():
            return int(value) if value.as_tuple().exponent == 0 else float(value)
        case datetime():
            return value.isoformat(" " if value.tzinfo is None else "T").removesuffix(" 00:00:00")
        case date() | time():
            return value.isoformat()
        case list():
            return [_plain(item) for item in cast("list[object]", value)]
        case dict():
            return {name: _plain(item) for name, item in cast("dict[object, object]", value).items()}
        case _:
            return value


def _decode_batch(batch: Any) -> Any:
    """Return a batch whose values are all there, in place of numbers that stand for duplicate_names ones."""
    import pyarrow

    library = cast(Any, pyarrow)
    columns = [
        column.dictionary_decode() if library.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return library.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of class ids that the library `datasets` writes into a file's metadata."""
    try:
        features: dict[str, Any] = json.loads(metadata[b"huggingface"])["info"]["features"]
        # Ids in lists have their names one level below.
        inner = {
            name: cast("Any", item)[0] if isinstance(item, list) else item for name, item in features.items()
        }
        ids: dict[str, Any] = {name: item.get("feature", item) for name, item in inner.items()}
        return {name: tuple(map(str, item["names"])) for name, item in ids.items() if "names" in item}
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
