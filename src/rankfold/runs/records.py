"""Finding the records of runs in a folder, or that of one adapter."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from rankfold.errors import DataError
from rankfold.runs import archive
from rankfold.runs.record import NAME, RunRecord


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
        for path in _visible(folder, archive.NAME)
        for place, record in archive.read_archive(path).items()
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
