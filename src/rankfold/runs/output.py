"""A run's folder appears complete or not at all, and an earlier one is never lost to a failure."""

import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from rankfold.errors import DataError, OutputExistsError, RankfoldError, SpecError
from rankfold.files import (
    CONFIG_NAME,
    check_replaceable,
    check_writable,
    naming_full_disk,
    open_to_readers,
    put_in_place,
    remove_scratch,
    restore_replaced,
)
from rankfold.runs.fields import differences, quote_differences
from rankfold.runs.migrate import upgrade_start
from rankfold.runs.record import NAME as RECORD_NAME
from rankfold.runs.record import RunRecord, parse_record
from rankfold.runs.records import archived_run
from rankfold.runs.request import RunRequest

START_NAME = "start.json"
"""The record of a run from before its first update, in the folder beside the run's."""

# Hidden, so that nobody takes what is in them for a finished run.
_NEW, _OLD = ".new", ".old"


def folder_beside(out: Path) -> Path:
    """Return the folder that belongs to a run until it is done."""
    return out.absolute().with_name(f"{out.name}.unfinished")


def read_start(out: Path) -> RunRecord:
    """Read the record of an unfinished run from before its first update.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    file = folder_beside(out) / START_NAME
    try:
        values = upgrade_start(json.loads(file.read_bytes()))
        return parse_record(json.dumps(values).encode(), f"'{file}'")
    except FileNotFoundError as error:
        raise DataError(
            f"there is no unfinished run of '{out}'; name its --model and --method to start one."
        ) from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"cannot read '{file}'; start again with --overwrite.") from error


def find_beginning(out: Path) -> RunRecord:
    """Return the record of a stopped run, or else of the one in the folder; its request says how it began.

    Raises:
        DataError: If there is neither, or it is damaged.
    """
    if not (folder_beside(out) / START_NAME).is_file() and (out / RECORD_NAME).is_file():
        return RunRecord.read(out)
    return read_start(out)


def refuse_differences(out: Path, changes: Sequence[str]) -> None:
    """Refuse to resume a run that began differently.

    Raises:
        SpecError: If there are differences; it names the first ones.
    """
    if changes:
        raise SpecError(
            f"cannot resume '{out}', which began differently: {quote_differences(changes)}; "
            "ask for the same again, or give --overwrite in place of --resume to start again."
        )


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder may be written, before any work is done.

    Raises:
        OutputExistsError: If it exists and may not be replaced, or does not look like a run or an adapter.
        SpecError: If nothing can be written where it is to be.
    """
    check_writable(folder)
    if folder.is_dir() and (folder.is_mount() or folder.resolve() == Path.cwd()):
        raise SpecError(
            f"'{folder}' is the folder you are in, or a disk of its own, and a finished run cannot take its "
            "place; name a new folder in it."
        )
    check_replaceable(folder, overwrite=overwrite, marks=[RECORD_NAME, CONFIG_NAME], kind="run or adapter")


def find_finished(request: RunRequest) -> RunRecord | None:
    """Return the record of a request that has been done well, or None if it is still to do.

    What an archive has of another run of that name does not matter: nothing is written over it.

    Raises:
        OutputExistsError: If its folder holds something else, which is not overwritten.
        DataError: If its folder holds a record that is damaged or of another version.
    """
    if (request.out / RECORD_NAME).is_file():
        try:
            record = RunRecord.read(request.out)
            changes = _changes(record, request)
        except DataError as error:
            fault = str(error).rpartition("; ")[0]  # what to do about it is another thing here
            raise DataError(
                f"{fault}; delete '{request.out}', or add --overwrite to do the run again."
            ) from error
        if changes:
            raise OutputExistsError(
                f"'{request.out}' holds another run: {quote_differences(changes)}; "
                "move it away, choose another folder, or add --overwrite to replace whatever is there."
            )
    else:
        check_output(request.out, overwrite=False)
        record = archived_run(request.out)
        if record is None or _changes(record, request):
            return None
    return record if record.status == "done" else None


def _changes(record: RunRecord, request: RunRequest) -> list[str]:
    """Return the differences of a request from the run that is there."""
    return list(differences(record.request.identity(), request.identity()))


def read_failure(folder: Path) -> RunRecord | None:
    """Return the record that a failed run left, or None if a folder holds anything else."""
    try:
        record = RunRecord.read(folder)
    except DataError:
        return None
    return record if record.status == "failed" else None


def clear_failure(folder: Path) -> None:
    """Take away the record of a failed run, so that the run can be tried again.

    What somebody else put into its folder stays, and the folder with it.
    """
    if read_failure(folder) is not None:
        (folder / RECORD_NAME).unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def output_folder(folder: Path, *, scratch: Path, overwrite: bool) -> Generator[Path]:
    """Give a new folder that takes the place of `folder` when the block ends without an error.

    Args:
        folder: What is written.
        scratch: A folder on the same disk for the new folder, and for the old one while they change places.
        overwrite: Replace what is there; nothing but the record of a failure is replaced without it, too.

    Raises:
        OutputExistsError: If `folder` may not be written; the new folder then stays beside it.
    """
    work = scratch / _NEW
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        with naming_full_disk(folder):
            yield work
        open_to_readers(work)
        try:
            check_output(folder, overwrite=overwrite or _holds_only_failure(folder))
            put_in_place(work, folder, scratch / _OLD)
        except (RankfoldError, OSError) as error:
            reason = str(error).partition("; ")[0]
            raise OutputExistsError(
                f"{reason}; the finished run is in '{_keep(work, folder)}', move it to where you want it."
            ) from error
    finally:
        restore_run(folder, scratch)
        for leftover in (work, scratch / _OLD):
            shutil.rmtree(leftover, ignore_errors=True)


def _keep(work: Path, folder: Path) -> Path:
    """Move a finished run that cannot take its place to a free name beside it, which is returned."""
    names = (f"{folder.name}.finished{number or ''}" for number in count())
    place = next(path for path in map(folder.absolute().with_name, names) if not os.path.lexists(path))
    work.rename(place)
    return place


def _holds_only_failure(folder: Path) -> bool:
    return read_failure(folder) is not None and len(list(folder.iterdir())) == 1


def restore_run(folder: Path, scratch: Path) -> None:
    """Put back an earlier run that a process moved aside and was stopped before it could replace it.

    Leavings of exports into the same folder go too.
    """
    remove_scratch(folder.absolute().parent)
    restore_replaced(folder, scratch / _OLD)
