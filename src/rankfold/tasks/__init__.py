"""Tasks: data with a known meaning and a metric. Named ones, an embedded one, and the user's own.

The names below are imported when they are first used, so that `rankfold.tasks.task` loads without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankfold.tasks.load import SPLITS as SPLITS
    from rankfold.tasks.load import choose_metrics as choose_metrics
    from rankfold.tasks.load import limit_rows as limit_rows
    from rankfold.tasks.load import load_task as load_task
    from rankfold.tasks.registry import NAMED_TASKS as NAMED_TASKS
    from rankfold.tasks.task import MIXTURES as MIXTURES
    from rankfold.tasks.task import Task as Task
    from rankfold.tasks.task import TaskData as TaskData
    from rankfold.tasks.task import TaskRequest as TaskRequest

_HOMES = {
    "MIXTURES": "rankfold.tasks.task",
    "NAMED_TASKS": "rankfold.tasks.registry",
    "SPLITS": "rankfold.tasks.load",
    "Task": "rankfold.tasks.task",
    "TaskData": "rankfold.tasks.task",
    "TaskRequest": "rankfold.tasks.task",
    "choose_metrics": "rankfold.tasks.load",
    "limit_rows": "rankfold.tasks.load",
    "load_task": "rankfold.tasks.load",
}

__all__ = [
    "MIXTURES",
    "NAMED_TASKS",
    "SPLITS",
    "Task",
    "TaskData",
    "TaskRequest",
    "choose_metrics",
    "limit_rows",
    "load_task",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankfold.tasks' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
