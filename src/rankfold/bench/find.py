"""Finding the records of runs in a folder."""

from pathlib import Path

from rankfold.bench.record import NAME, RunRecord
from rankfold.errors import DataError


def find_records(folder: Path) -> list[RunRecord]:
    """Return every record under a folder, the earliest run first; hidden folders are left out.

    Args:
        folder: A run's folder, or one that holds such folders at any depth.

    Raises:
        DataError: If there is no such folder, or no run in it.
        RecordError: If a record is damaged.
    """
    if not folder.is_dir():
        raise DataError(
            f"there is no folder '{folder}'; name one that `rankfold compare` or `rankfold train` wrote."
        )
    paths = sorted(
        path
        for path in folder.rglob(NAME)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise DataError(
            f"there is no {NAME} under '{folder}'; run `rankfold train` or `rankfold compare` first."
        )
    return sorted(map(RunRecord.read, paths), key=lambda record: record.created)
