"""Reading data: a folder of splits, one file, or a hub dataset become rows."""

import glob
import gzip
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

from rankfold.errors import DataError
from rankfold.progress import quiet_libraries

Row = Mapping[str, object]
Rows = Sequence[Row]

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "validation_matched", "dev_matched"),
    "test": ("test", "test_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
}
_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Data that has been found, not read.

    Args:
        name: Shown in messages and records: a path or a hub id.
        files: One file a split; empty for a hub dataset.
        instead: What to do where the hub does not give it.
    """

    name: str
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    instead: str = "name a local folder"


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one split.

    Args:
        rows: One mapping a row, with the same columns in each.
        class_names: For columns of class ids, the names the ids stand for.
        indices: The index of each row in the source, from 0; None if these are all its rows, in order.
    """

    rows: Rows
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    indices: Sequence[int] | None = None

    def enumerate_rows(self) -> Iterator[tuple[int, Row]]:
        """Yield each row with its index in the source."""
        return zip(range(len(self.rows)) if self.indices is None else self.indices, self.rows, strict=True)

    def part(self, indices: Iterable[int]) -> Self:
        """Return some of all the rows of a source."""
        positions = tuple(indices)
        return replace(self, rows=[self.rows[index] for index in positions], indices=positions)


def find_source(name: str) -> Source:
    """Find data by a folder, a file, or a hub id (`owner/name`, or `owner/name:config`).

    Raises:
        DataError: If there is nothing of that name, or nothing in it that can be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, _files_of(path))
    if path.is_file():
        _builder_of(path)
        return Source(name, {"train": path})
    if not _HUB_ID.fullmatch(name) or name.startswith(".") or _suffix(path) in _BUILDERS:
        raise DataError(
            f"there is no data at '{name}'; name a folder, a JSONL, CSV or Parquet file, or a hub dataset."
        )
    return Source(name)


def _files_of(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for split, names in _SPLIT_NAMES.items():
        matches = sorted(
            path
            for path in folder.iterdir()
            if path.name.partition(".")[0] in names and _suffix(path) in _BUILDERS
        )
        if len(matches) > 1:
            file_names = ", ".join(f"'{path.name}'" for path in matches)
            raise DataError(
                f"'{folder}' has several files for the split '{split}' ({file_names}); keep one of them."
            )
        if matches:
            files[split] = matches[0]
    if not files:
        raise DataError(
            f"'{folder}' has no split to read; it needs train.jsonl, train.csv or train.parquet "
            "(and the same for validation and test), which may be gzipped."
        )
    return files


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _builder_of(path: Path) -> str:
    builder = _BUILDERS.get(_suffix(path))
    if builder is None:
        raise DataError(
            f"cannot read '{path}'; use a file that ends in {', '.join(_BUILDERS)} (.gz is fine)."
        )
    return builder


def read_split(source: Source, split: str) -> Table | None:
    """Read one split, or return None if the source has no such split.

    Raises:
        DataError: If the file is damaged or empty, or the hub does not give the dataset.
    """
    if not source.files:
        return _read_hub(source, split)
    path = source.files.get(split)
    if path is None:
        return None
    library = _datasets()
    # The library takes a path for a pattern, and "[1]" in it for the one letter "1".
    options: dict[str, Any] = {"data_files": glob.escape(str(path)), "split": "train"}
    if _builder_of(path) == "csv":
        # "NA" and "None" are words of a text; an empty label is found when labels are read.
        options["keep_default_na"] = False
    # The library wants a folder to unpack into; nothing of it is needed once the rows are in memory.
    with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch, quiet_libraries():
        try:
            dataset = library.load_dataset(
                _builder_of(path), cache_dir=scratch, keep_in_memory=True, **options
            )
        except (
            library.exceptions.DatasetGenerationError,
            OSError,
            ValueError,
            EOFError,
            TypeError,
            StopIteration,
        ) as error:
            if _is_empty(error):
                raise _empty(f"'{path}'") from error
            raise DataError(
                f"cannot read '{path}' ({_reason(error)}); check that the file is whole."
            ) from error
        table = _table(dataset, f"'{path}'")
    dates = [name for name, feature in dataset.features.items() if "timestamp" in str(feature)]
    return _as_written(table, path, dates) if dates and _builder_of(path) == "json" else table


def _as_written(table: Table, path: Path, columns: Sequence[str]) -> Table:
    """Return a table with the texts of JSON where its reader took a column of nothing but dates for times."""
    text = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes()).decode("utf-8-sig")
    lines = (line for line in text.split("\n") if line.strip())
    try:
        json_rows: list[Row] = (
            json.loads(text) if text.lstrip().startswith("[") else [*map(json.loads, lines)]
        )
        rows = [
            {**row, **{name: texts.get(name) for name in columns}}
            for row, texts in zip(table.rows, json_rows, strict=True)
        ]
    except (ValueError, AttributeError) as error:
        raise DataError(f"cannot read '{path}' ({_reason(error)}); give it one object a line.") from error
    return replace(table, rows=rows)


def _read_hub(source: Source, split: str) -> Table | None:
    library = _datasets()
    repository, _, config = source.name.partition(":")
    with quiet_libraries():
        try:
            available: list[str] = library.get_dataset_split_names(repository, config or None)
            hub_split = next((name for name in _SPLIT_NAMES[split] if name in available), None)
            if hub_split is None:
                return None
            dataset = library.load_dataset(repository, config or None, split=hub_split)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"there is no folder or file '{source.name}' and the hub did not give it "
                f"({_reason(error)}); check the name and the network, or {source.instead}."
            ) from error
        return _table(dataset, f"'{source.name}'")


def _datasets() -> Any:
    try:
        import datasets  # of an extra, and slow to import
    except ImportError as error:
        raise DataError(
            "reading data takes the package 'datasets'; install it with `pip install 'rankfold[bench]'`."
        ) from error
    return datasets


def _table(dataset: Any, name: str) -> Table:
    rows = cast("list[dict[str, object]]", dataset.to_list())
    if not rows:
        raise _empty(name)
    class_ids = _datasets().ClassLabel
    names = {
        column: tuple(feature.names)
        for column, feature in dataset.features.items()
        if isinstance(feature, class_ids)
    }
    return Table(rows, names)


def _empty(name: str) -> DataError:
    return DataError(f"{name} is empty; give it at least one row.")


def _is_empty(error: BaseException) -> bool:
    # The JSON reader looks for a first row that is not there; the CSV reader makes a split of nothing, or
    # finds no line to read the columns from.
    words = f"{error} {error.__cause__}"
    return (
        isinstance(error, StopIteration)
        or "corresponds to no data" in words
        or "No columns to parse" in words
    )


def _reason(error: BaseException) -> str:
    # The library wraps the real reason, sometimes twice.
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split()).rstrip(".")
    return words[:200] or type(error).__name__
