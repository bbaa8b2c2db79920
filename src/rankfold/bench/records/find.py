"""Finding the records of runs in a folder, or that of one adapter."""

from pathlib import Path

from rankfold.bench.records import archive
from rankfold.bench.records.record import NAME, RunRecord
from rankfold.errors import DataError
from rankfold.train.models.saved import stored_bytes


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
    found = {
        path.parent / place: record
        for path in _visible(folder, archive.NAME)
        for place, record in archive.read_archive(path).items()
    }
    found |= {path.parent: RunRecord.read(path) for path in _visible(folder, NAME)}
    if not found:
        raise DataError(
            f"there is no {NAME} under '{folder}'; run `rankfold train` or `rankfold compare` first."
        )
    return {place.relative_to(folder).as_posix(): record for place, record in found.items()}


def find_record(adapter: Path) -> RunRecord | None:
    """Return the record beside an adapter, or None if the adapter was not trained by `rankfold train`.

    Raises:
        AdapterFileError: If the folder is no adapter, or a file is damaged.
        DataError: If the record is damaged.
    """
    stored_bytes(adapter)
    return RunRecord.read(adapter) if (adapter / NAME).is_file() else None


def _visible(folder: Path, name: str) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob(name)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
