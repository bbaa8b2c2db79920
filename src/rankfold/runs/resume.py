"""Resume: `<out>.unfinished`, the state kept next to a run until it completes.

It holds how the run began, its checkpoints, and the new folder while that is being written. A run goes on
only as what it was. Another process at the same run is noticed by a lock, which the system takes away with
the process that holds it.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from rankfold.errors import (
    BusyError,
    CheckpointError,
    DataError,
    DiskError,
    OutputExistsError,
    RankfoldError,
    RankfoldWarning,
)
from rankfold.files import write_whole
from rankfold.models.base import resolve_model
from rankfold.runs.fields import differences, quote_differences
from rankfold.runs.output import START_NAME, folder_beside, read_start, refuse_differences, restore_run
from rankfold.runs.record import DataVersion, RunRecord, measured_on
from rankfold.runs.request import RunRequest
from rankfold.tasks.kinds import find_kind
from rankfold.train.checkpoint import Checkpoints
from rankfold.train.distributed import is_main_process, wait_for_all

logger = logging.getLogger("rankfold.runs")

_LOCK = "lock"
_SAME = ("method", "model", "task", "data", "training", "parameters", "init")
_ALIKE = ("versions", "hardware")
_HASH_DIGITS = 8


def is_unfinished(out: Path) -> bool:
    """Whether a stopped run can be resumed."""
    folder = folder_beside(out)
    return (folder / START_NAME).is_file() and Checkpoints(folder, every=0).newest() is not None


def check_unfinished(request: RunRequest) -> None:
    """Check the state that an earlier run left, before any work is done.

    Raises:
        OutputExistsError: If it could go on, and the request neither resumes nor replaces it.
        SpecError: If the request resumes it, but asks for something else.
        DataError: If it cannot be read how it began.
    """
    if not is_unfinished(request.out):
        return
    if request.resume:
        before = read_start(request.out).request
        refuse_differences(request.out, list(differences(before.identity(), request.identity())))
    elif not request.overwrite:
        raise OutputExistsError(
            f"a run of '{request.out}' is not finished; "
            "add --resume to go on with it, or --overwrite to start again."
        )


def current_data(request: RunRequest) -> DataVersion | None:
    """Return the hash of the rows and the version of the task that a request names; None if unreadable."""
    from rankfold.tasks import load_task  # with what reads data, of an extra

    try:
        base = resolve_model(request.model, trust_remote_code=request.trust_remote_code)
        data = load_task(request.task_request, is_causal=base.is_causal)
    except RankfoldError:
        return None
    return data.sha256, data.task.version or 1


def check_unchanged(record: RunRecord, request: RunRequest) -> None:
    """Check that a finished run still belongs to the data and the model that its request names.

    Data or a model that cannot be read any more are not compared.

    Raises:
        DataError: If the rows, the version of the task or the weights of the model differ.
    """
    pairs: list[tuple[str, object, object]] = []
    if (data := current_data(request)) is not None:
        (rows, version), (rows_now, version_now) = measured_on(record), data
        pairs = [
            ("the data has the hash", _short(rows), _short(rows_now)),
            ("the task has the version", version, version_now),
        ]
    with suppress(RankfoldError):
        weights = resolve_model(request.model, trust_remote_code=request.trust_remote_code).sha256()
        pairs.append(("the model has the hash", _short(record.model.sha256), _short(weights)))
    changes = [f"{name} {now} and had {then}" for name, then, now in pairs if then and now and then != now]
    if changes:
        raise DataError(
            f"'{request.out}' is done, but {', '.join(changes)}; "
            "add --overwrite to run it again, choose another --out, or bring the earlier files back."
        )


def _short(digest: str) -> str:
    return digest[:_HASH_DIGITS]


@contextmanager
def unfinished_run(request: RunRequest, start: RunRecord) -> Generator[Checkpoints]:
    """Give a run its checkpoints; they go when it is done or cannot succeed, and stay if it is stopped.

    They stay as well if its result may not be put in its place, or a checkpoint is damaged: neither says
    anything against the training.

    Args:
        request: The run.
        start: Its record before the first update.

    Raises:
        BusyError: If another process is using it.
        SpecError: If the run to resume was of another model, other data or another method.
    """
    folder = folder_beside(request.out)
    checkpoints = Checkpoints(folder, request.checkpoint_every)
    if not is_main_process():
        wait_for_all()
        yield checkpoints
        return
    with _lock(folder, request.out):
        restore_run(request.out, folder)
        newest = checkpoints.newest() if request.resume and is_unfinished(request.out) else None
        if newest is not None:
            _check_same(request.out, read_start(request.out), start)
            logger.info("resuming '%s' from its %s.", request.out, newest.name)
        else:
            _clear(folder)
            write_whole(folder / START_NAME, json.dumps(start.to_dict(), indent=1).encode())
        wait_for_all()
        try:
            yield checkpoints
        except BaseException as error:
            # A training that fails on purpose would come to the same end again.
            can_go_on = isinstance(error, OutputExistsError | DiskError | CheckpointError)
            is_over = isinstance(error, RankfoldError) and not can_go_on
            if is_unfinished(request.out) and not is_over:
                logger.info("'%s' is not finished; --resume goes on from its last checkpoint.", request.out)
            else:
                _clear(folder)
            raise
        _clear(folder)


def remove_leftover(out: Path) -> None:
    """Delete the state beside a finished run that was killed between its last write and the cleanup.

    The state of a run that has begun anew stays.
    """
    folder = folder_beside(out)
    if is_main_process() and os.path.isdir(folder) and _has_finished(out):
        # Another process that holds the lock cleans up itself.
        with suppress(BusyError), _lock(folder, out):
            _clear(folder)


def _has_finished(out: Path) -> bool:
    """Return whether the run in a folder is the one whose state is beside it."""
    try:
        record, start = RunRecord.read(out), read_start(out)
    except DataError:
        return False
    is_same = record.request.identity() == start.request.identity()
    return record.status == "done" and is_same and record.created >= start.created


@contextmanager
def _lock(folder: Path, out: Path) -> Generator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"another process is at work on '{out}'; wait for it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
        if not (folder / START_NAME).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    # The start goes first: without it nothing else counts.
    (folder / START_NAME).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _check_same(out: Path, then: RunRecord, now: RunRecord) -> None:
    """Check that a run can be resumed, and say if it will not be the same to the bit."""
    kind = find_kind(now.task.kind)
    if then.task.kind in kind.former_names:
        then = replace(then, task=replace(then.task, kind=now.task.kind))
    derived = {name: value for name, value in now.task.settings.items() if name in kind.derived_settings}
    then = replace(then, task=replace(then.task, settings={**derived, **then.task.settings}))
    # An earlier rankfold did not record the columns; the hash of the rows covers them.
    then = replace(then, data=replace(then.data, columns=now.data.columns))
    before, after = then.to_dict(), now.to_dict()
    refuse_differences(
        out, [change for part in _SAME for change in differences(before[part], after[part], part)]
    )
    changes = [change for part in _ALIKE for change in differences(before[part], after[part], part)]
    if changes:
        warnings.warn(
            f"'{out}' began elsewhere: {quote_differences(changes)}; "
            "it goes on, but not bit for bit the same.",
            RankfoldWarning,
            stacklevel=2,
        )
