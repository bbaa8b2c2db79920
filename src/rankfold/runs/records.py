"""The records of many runs: in a folder, or in an archive without adapters, to commit and to send.

`records.jsonl.gz` in a suite's folder holds a record a line, with the folder of its run below that folder. A
run that is in it counts as done, so a suite goes on from its archive as it does from its folders.
"""

import gzip
import json
import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from rankfold.errors import DataError, OutputExistsError
from rankfold.files import write_into
from rankfold.runs.record import NAME, RunRecord, parse_record

ARCHIVE_NAME = "records.jsonl.gz"
_PLACE = b'{"folder":'


def check_nothing_lost(records: Mapping[str, RunRecord], folder: Path) -> None:
    """Check that a folder's archive holds no run that is not among the records that will take its place.

    Raises:
        OutputExistsError: If it does.
        DataError: If it is damaged.
    """
    missing_runs = sorted(read_archive(folder / ARCHIVE_NAME).keys() - records.keys())
    if missing_runs:
        suffix = f" and {len(missing_runs) - 1} more" if len(missing_runs) > 1 else ""
        raise OutputExistsError(
            f"'{folder / ARCHIVE_NAME}' holds other runs ('{missing_runs[0]}'{suffix}), which would be lost; "
            "name another folder with --out, or add --overwrite."
        )


def write_archive(records: Mapping[str, RunRecord], folder: Path) -> Path:
    """Replace a folder's archive by one of these records, and return its path.

    The same records give the same bytes. What was written is read again before anyone relies on it. Where the
    runs and their data lay on this machine is left out: that is nobody else's business, and no part of a run.

    Args:
        records: Each by the folder of its run, such as "rung-1/lora", as seen from what is archived.
        folder: Gets the archive.

    Raises:
        SpecError: If it cannot be written.
        DataError: If what is read again is not what was written.
    """
    records = {place: _without_places(record, place) for place, record in records.items()}
    lines = [
        json.dumps({"folder": place, **record.to_dict()}, ensure_ascii=False, separators=(",", ":"))
        for place, record in sorted(records.items())
    ]
    text = "".join(f"{line}\n" for line in lines)
    file = write_into(folder, ARCHIVE_NAME, gzip.compress(text.encode(), compresslevel=9, mtime=0))
    if read_archive(file) != records:
        raise DataError(f"'{file}' does not hold what was written; keep the folders, and report this.")
    return file


def _without_places(record: RunRecord, place: str) -> RunRecord:
    """Return a record whose run lay in `place`, and whose data in the folder of its task."""
    request, source = record.request, record.data.source
    if request.data_root is not None:
        source = source.replace(f"{request.data_root}/", "")
    request = replace(request, out=Path(place), data_root=None)
    return replace(record, request=request, data=replace(record.data, source=source))


def read_archive(file: Path) -> Mapping[str, RunRecord]:
    """Return the records of an archive by the folders of their runs; none if there is no such file.

    Raises:
        DataError: If it is damaged, or a record is.
    """
    if not file.is_file():
        return {}
    status = file.stat()
    return _read(file, (status.st_mtime_ns, status.st_size))


def archived_run(out: Path) -> RunRecord | None:
    """Return the record of a run's folder that an archive in a folder above it holds, if one does."""
    candidates = (
        read_archive(above / ARCHIVE_NAME).get(out.relative_to(above).as_posix()) for above in out.parents
    )
    return next((record for record in candidates if record is not None), None)


@lru_cache(maxsize=4)
def _read(file: Path, _version: tuple[int, int]) -> Mapping[str, RunRecord]:
    """Read an archive once for each version of it, however many runs ask whether they are in it."""
    try:
        lines = gzip.decompress(file.read_bytes()).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"'{file}' is damaged ({error}); write it again with `rankfold bench archive`."
        ) from error
    records: dict[str, RunRecord] = {}
    for number, line in enumerate(lines, start=1):
        place, record = _parse_line(line, f"line {number} of '{file}'")
        # Archives without folders may have several runs of one name.
        records[place if place not in records else f"{place}~{number}"] = record
    return records


def _parse_line(line: bytes, source: str) -> tuple[str, RunRecord]:
    """Return the folder and record of a line; the oldest archives have no folders but the names of runs."""
    if not line.startswith(_PLACE):
        record = parse_record(line, source)
        return record.name, record
    try:
        values = json.loads(line)
        place = str(values.pop("folder"))
    except ValueError as error:
        raise DataError(f"{source} is damaged ({error}); archive its folder again.") from error
    if Path(place).is_absolute() or ".." in Path(place).parts:
        raise DataError(
            f"{source} is of the folder '{place}', which is not below it; archive its folder again."
        )
    return place, parse_record(json.dumps(values).encode(), source)


def find_records(folder: Path) -> list[RunRecord]:
    """Return every record under a folder, the earliest run first; hidden folders are left out.

    Raises:
        DataError: If there is no such folder, no run in it, or a record is damaged.
    """
    return sorted(find_places(folder).values(), key=lambda record: record.created)


def find_places(folder: Path) -> dict[str, RunRecord]:
    """Return every record under a folder by the folder of its run, such as "rung-1/lora".

    Hidden folders are left out. A run that an archive holds and a folder too is that of the folder.

    Args:
        folder: A run's folder, or one that holds such folders or archives at any depth.

    Raises:
        DataError: If there is no such folder, no run in it, or a record is damaged.
    """
    if not folder.is_dir():
        raise DataError(
            f"there is no folder '{folder}'; name one that `rankfold compare` or `rankfold train` wrote."
        )
    records = {
        path.parent / place: record
        for path in _visible(folder, ARCHIVE_NAME)
        for place, record in read_archive(path).items()
    }
    records |= {path.parent: RunRecord.read(path) for path in _visible(folder, NAME)}
    if not records:
        raise DataError(
            f"there is no {NAME} under '{folder}'; run `rankfold train` or `rankfold compare` first."
        )
    return {place.relative_to(folder).as_posix(): record for place, record in records.items()}


def find_record(adapter: Path) -> RunRecord | None:
    """Return the record beside an adapter, or None if the adapter was not trained by `rankfold train`.

    Raises:
        DataError: If the record is damaged.
    """
    return RunRecord.read(adapter) if (adapter / NAME).is_file() else None


def _visible(folder: Path, name: str) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob(name)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


Settings = Mapping[str, object]


def labels_of(entries: Sequence[tuple[str, Settings]]) -> list[str]:
    """Return one label per entry, which names the settings in which entries of one method differ.

    Numbers are written with six digits, so labels are equal where settings differ by less.

    Args:
        entries: The method's name with all its settings.

    Example:
        >>> labels_of([("lora", {"r": 8}), ("lora", {"r": 16}), ("tlora", {"r": 8})])
        ['lora r=8', 'lora r=16', 'tlora']
    """
    return [
        label_of(name, settings, differing([s for method, s in entries if method == name]))
        for name, settings in entries
    ]


def label_of(name: str, settings: Settings, keys: Container[str]) -> str:
    """Return the method with those of its settings that have one of the keys."""
    return label_with_all(name, {key: value for key, value in settings.items() if key in keys})


def differing(siblings: Sequence[Settings]) -> set[str]:
    """Return the keys in which some of the settings differ, or that some of them lack."""
    return {
        key
        for settings in siblings
        for key, value in settings.items()
        if any(key not in sibling or sibling[key] != value for sibling in siblings)
    }


def label_with_all(name: str, settings: Settings) -> str:
    """Return the method with every setting."""
    return " ".join([name, *(f"{key}={value_text(value)}" for key, value in settings.items())])


def label_as_stored(name: str, settings: Settings, dtype: str | None) -> str:
    """Return the method with every setting, and the type that it is stored in if it is rounded."""
    label = label_with_all(name, settings)
    return f"{label} in {dtype}" if dtype else label


def reducer_settings(options: Mapping[str, JsonValue] | None) -> dict[str, object]:
    """Return the options of a Reducer as settings of a method; none if there is no Reducer."""
    if options is None:
        return {}
    return {"reducer": "on", **{f"reducer.{name}": value for name, value in options.items()}}


def value_text(value: object) -> str:
    """Return a value as a label has it: "0.001", "8", "1,2"."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(value_text(item) for item in cast("Sequence[object]", value))
    return str(value)
