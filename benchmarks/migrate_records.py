"""Bring the committed records to the present format: a command of 0.1.0 becomes a request.

Nothing is run again. Measurements, predictions and curves stay as they are, so every claim keeps its verdict.
Run it from the root of the repository: `python benchmarks/migrate_records.py`.
"""

from dataclasses import replace
from pathlib import Path

from rankfold.bench.step_times import read_step_times, write_step_times
from rankfold.bench.suites.saved_suite import load_suite
from rankfold.bench.suites.speed import _pairs
from rankfold.runs.records import ARCHIVE_NAME, read_archive, write_archive

RECORDS = Path(__file__).with_name("records")


def migrate_archive(folder: Path) -> None:
    """Write an archive's records in the present format; those in it already keep their bytes."""
    before = (folder / ARCHIVE_NAME).stat().st_size
    records = read_archive(folder / ARCHIVE_NAME)
    write_archive(records, folder)
    after = (folder / ARCHIVE_NAME).stat().st_size
    print(f"{folder.name}: {len(records)} records, {before:,} bytes before and {after:,} after")


def migrate_step_times(folder: Path) -> None:
    """Write the hashes of two requests, by which measured step times are known again, in the present form."""
    suite, times = load_suite(folder), read_step_times(folder)
    if suite is None or not times:
        return
    hashes = {
        (pair.ours.model, pair.ours.task, pair.label, pair.reference): pair.asked for pair in _pairs(suite)
    }
    known = [
        replace(time, asked=hashes.get((time.model, time.task, time.label, time.reference), time.asked))
        for time in times
    ]
    write_step_times(known, folder)
    print(f"{folder.name}: {sum(a != b for a, b in zip(times, known, strict=True))} step times")


if __name__ == "__main__":
    for archive in sorted(RECORDS.glob(f"*/{ARCHIVE_NAME}")):
        migrate_archive(archive.parent)
        migrate_step_times(archive.parent)
