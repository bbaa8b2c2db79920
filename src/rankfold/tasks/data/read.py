"""Reading data: a folder of splits, one file, or a hub dataset become tables."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rankfold.errors import DataError, nearest
from rankfold.progress import quiet_libraries
from rankfold.tasks.data.arrow_rows import read_arrow, read_parquet
from rankfold.tasks.data.conll_rows import read_conll
from rankfold.tasks.data.csv_rows import read_csv
from rankfold.tasks.data.decode import COMPRESSIONS, ReadOptions, read_text, reason_of
from rankfold.tasks.data.json_rows import read_json, split_names
from rankfold.tasks.data.layout import FORMATS, SPLIT_NAMES, find_layout, format_of
from rankfold.tasks.data.picture_rows import read_picture_folder
from rankfold.tasks.data.table import FileRows, Finding, Origin, Row, Rows, Table

__all__ = ["ReadOptions", "Row", "Rows", "Source", "Table", "find_source", "read_split"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Data that has been found, not read.

    Args:
        name: Shown in messages and records: a path or a hub id.
        files: The files of each split, in order; empty for a hub dataset.
        instead: What to do where the hub does not give it.
        findings: Remarks on the files that are there.
    """

    name: str
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict[str, Sequence[Path]])
    instead: str = "name a local folder"
    findings: tuple[Finding, ...] = ()


def find_source(name: str) -> Source:
    """Find data by a folder, a file, or a hub id (`owner/name`, or `owner/name:config`).

    Raises:
        DataError: If there is nothing of that name, or nothing in it that can be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        layout = find_layout(path)
        return Source(name, layout.files, findings=layout.findings)
    if path.is_file():
        if format_of(path) is None:
            raise DataError(
                f"cannot read '{path}'; use a file that ends in {', '.join(FORMATS)} (compressed, with "
                f"{', '.join(COMPRESSIONS)} behind, is fine)."
            )
        return Source(name, _splits_of_file(path))
    near = _near_path(path)
    if not _HUB_ID.fullmatch(name) or name.startswith(".") or format_of(path):
        raise DataError(
            f"there is no data at '{name}'{near}; "
            "name a folder, a JSONL, CSV or Parquet file, or a hub dataset."
        )
    return Source(name, instead=f"name a local folder{near}")


def _splits_of_file(path: Path) -> dict[str, list[Path]]:
    """Return the splits of one file: those of a JSON object with a list for each, else the training split."""
    splits: Iterable[str] = ()
    if format_of(path) == ".json":
        with suppress(DataError):  # which reading the rows says
            splits = split_names(read_text(path, ReadOptions(), has_lines=False)[0])
    return {split: [path] for split in splits or ("train",)}


def _near_path(path: Path) -> str:
    """Return the file or folder that may be meant, in brackets; empty if none is near."""
    try:
        near = nearest(path.name, (item.name for item in path.parent.iterdir() if item.name[:1] != "."))
    except OSError:
        return ""
    return "" if near is None else f" (did you mean '{path.with_name(near)}'?)"


def read_split(source: Source, split: str, options: ReadOptions | None = None) -> Table | None:
    """Read one split, or return None if the source has no such split.

    Args:
        source: Where it is.
        split: Its name.
        options: The encoding and delimiter of files, and the most bytes.

    Raises:
        DataError: If a file is damaged, empty or too large, or the hub does not give the dataset.
    """
    if not source.files:
        return _read_hub(source, split)
    paths = source.files.get(split)
    if paths is None:
        return None
    options = options or ReadOptions()
    files: list[FileRows] = []
    for path in paths:
        room = options.max_bytes - sum(file.size for file in files)
        files.append(_read_file(path, replace(options, max_bytes=room), split))
    return _join(paths, files)


def _read_file(path: Path, options: ReadOptions, split: str) -> FileRows:
    if path.is_dir():
        return read_picture_folder(path)
    ending = format_of(path)
    if ending == ".parquet":
        return read_parquet(path, options.max_bytes)
    if ending == ".arrow":
        return read_arrow(path, options.max_bytes)
    text, size, findings = read_text(path, options, has_lines=ending != ".json")
    if ending in (".csv", ".tsv"):
        file = read_csv(text, str(path), options.delimiter_character, is_tsv=ending == ".tsv")
    elif ending in (".conll", ".bio"):
        file = read_conll(text, str(path))
    else:
        file = read_json(text, str(path), split, has_lines=ending != ".json")
        file = replace(file, rows=_with_same_columns(file.rows))
    return replace(file, size=size, findings=[*findings, *file.findings])


def _join(paths: Sequence[Path], files: Sequence[FileRows]) -> Table:
    """Return the rows of all files of a split as one table.

    Raises:
        DataError: If there is no row, or the files have different columns.
    """
    rows: list[Row] = []
    origins: list[Origin] = []
    for path, file in zip(paths, files, strict=True):
        origins.append(Origin(str(path), len(rows), file.lines))
        rows += file.rows
    if not rows:
        raise _empty(", ".join(f"'{path}'" for path in paths))
    findings = tuple(finding for file in files for finding in file.findings)
    if len(files) > 1:
        rows = [*_with_same_columns(rows)]
    return Table(
        _with_same_numbers(rows),
        files[0].class_names,
        origins=origins,
        findings=findings,
        is_typed=files[0].is_typed,
    )


def _with_same_columns(rows: Rows) -> Rows:
    """Return rows that all have the columns that one of them has; a value that is not there is None."""
    if not rows or all(row.keys() == rows[0].keys() for row in rows):
        return rows
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def _with_same_numbers(rows: Rows) -> Rows:
    """Return rows in which a column of whole and other numbers has floating-point numbers only."""
    mixed = [name for name in rows[0] if _is_mixed([row[name] for row in rows])]
    if not mixed:
        return rows
    return [
        {name: float(value) if name in mixed and type(value) is int else value for name, value in row.items()}
        for row in rows
    ]


def _is_mixed(values: Sequence[object]) -> bool:
    types = {type(value) for value in values}
    if types - {type(None)} != {int, float}:
        return False
    return all(abs(value) < 1 << 1000 for value in values if isinstance(value, int))  # what a float can hold


def _read_hub(source: Source, split: str) -> Table | None:
    library = _datasets()
    repository, _, config = source.name.partition(":")
    with quiet_libraries():
        try:
            available: list[str] = library.get_dataset_split_names(repository, config or None)
            hub_split = next((name for name in SPLIT_NAMES[split] if name in available), None)
            if hub_split is None:
                return None
            dataset = library.load_dataset(repository, config or None, split=hub_split)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"there is no folder or file '{source.name}' and the hub did not give it "
                f"({_reason(error)}); check the name and the network, or {source.instead}."
            ) from error
        return _hub_table(dataset, f"'{source.name}'")


def _datasets() -> Any:
    try:
        import datasets  # of an extra, and slow to import
    except ImportError as error:
        raise DataError(
            "reading data from the hub takes the package 'datasets'; "
            "install it with `pip install 'rankfold[bench]'`."
        ) from error
    return datasets


def _hub_table(dataset: Any, name: str) -> Table:
    rows = cast("list[dict[str, object]]", dataset.to_list())
    if not rows:
        raise _empty(name)
    class_ids = _datasets().ClassLabel
    names = {
        column: tuple(ids.names)
        for column, feature in dataset.features.items()
        # Ids in lists have their names one level below.
        if isinstance(ids := getattr(feature, "feature", feature), class_ids)
    }
    return Table(rows, names)


def _empty(name: str) -> DataError:
    return DataError(f"{name} is empty; give it at least one row.")


def _reason(error: BaseException) -> str:
    # The library wraps the real reason, sometimes twice.
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)
