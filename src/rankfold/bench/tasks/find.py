"""Which task is asked for, and where its data is: embedded, in a folder, in a file, or on the hub.

Other packages add tasks through the entry point group `rankfold.tasks`.
"""

import logging
import os
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from rankfold.bench.task_request import TaskRequest
from rankfold.bench.tasks.mixture import SEPARATOR
from rankfold.bench.tasks.named import NAMED
from rankfold.bench.tasks.task import Task
from rankfold.errors import DataError, SpecError, unknown_name
from rankfold.train.data.read import Source, find_source

logger = logging.getLogger("rankfold.bench")

EMBEDDED = "bbc_news"
DATA_ROOT = "RANKFOLD_DATA"
GROUP = "rankfold.tasks"


def find_task(request: TaskRequest) -> tuple[Task, Source | None]:
    """Return the task and where its data is; None is the embedded data.

    A folder of the task's name goes before the hub.

    Raises:
        SpecError: If neither task nor data is given, or the task is unknown.
        DataError: If there is no data of that name.
    """
    name = request.task
    if request.data is not None:
        own = Task(request.name, None, ()) if name is None else _named(name)
        return own, find_source(request.data)
    if name is None:
        raise nothing_named()
    if name == EMBEDDED:
        return NAMED[name], None
    folder = _folder(request, name)
    if folder is not None and folder.is_dir():
        return _known(name) or Task(name, None, ()), find_source(str(folder))
    task = _named(name)
    if folder is not None and _holds_splits(folder.parent):
        raise DataError(
            f"'{folder.parent}' holds splits itself; name the folder above it, or give it with --data."
        )
    return _on_hub(task, f"there is no folder '{folder}'" if folder else f"'{name}' is not embedded")


def check_named(request: TaskRequest) -> None:
    """Check that each task of a request is known, or that a folder has its name, without reading any data.

    Raises:
        SpecError: If neither task nor data is given, or a task is unknown.
    """
    if request.task is None and request.data is None:
        raise nothing_named()
    for name in filter(None, (request.task or "").split(SEPARATOR)):
        folder = _folder(request, name)
        if folder is None or not folder.is_dir():
            _named(name)


def _folder(request: TaskRequest, name: str) -> Path | None:
    root = request.data_root or os.environ.get(DATA_ROOT)
    return Path(root).expanduser() / name if root else None


def _holds_splits(folder: Path) -> bool:
    try:
        return folder.is_dir() and bool(find_source(str(folder)).files)
    except DataError:
        return False


def nothing_named() -> SpecError:
    """Return the error for a run that has nothing to learn."""
    return SpecError("neither a task nor data is given; name a task with --task or data with --data.")


def _on_hub(task: Task, nowhere_else: str) -> tuple[Task, Source]:
    remedy = f"name the folder that holds a folder '{task.name}' with --data-root or {DATA_ROOT}"
    if task.hub is None:
        raise DataError(f"{nowhere_else}; {remedy}, or the data itself with --data.")
    logger.info("%s; asking the hub for '%s'.", nowhere_else, task.hub)
    return task, replace(find_source(task.hub), instead=remedy)


def _named(name: str) -> Task:
    if (task := _known(name)) is None:
        raise unknown_name("task", name, {*NAMED, *entry_points(group=GROUP).names})
    return task


def _known(name: str) -> Task | None:
    """Return the task of a name: one of ours, or of another package, of which only this one is loaded."""
    if name in NAMED:
        return NAMED[name]
    found = tuple(entry_points(group=GROUP, name=name))
    if len(found) > 1:
        raise SpecError(f"two packages have a task '{name}'; uninstall one of them.")
    if not found:
        return None
    task = found[0].load()
    if not isinstance(task, Task) or task.name != name:
        raise SpecError(f"'{found[0].value}' is no task with the name '{name}'; mend the package it is from.")
    return task
