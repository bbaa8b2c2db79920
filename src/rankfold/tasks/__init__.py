"""Tasks: data with a known meaning and a metric. Named ones, an embedded one, and the user's own.

The names below are imported when they are first used, so that `rankfold.tasks.task` loads without torch.
"""

from typing import TYPE_CHECKING

from rankfold._bootstrap import lazy_names

if TYPE_CHECKING:
    from rankfold.tasks.load import SPLITS, choose_metrics, limit_rows, load_task
    from rankfold.tasks.registry import NAMED_TASKS
    from rankfold.tasks.task import MIXTURES, Task, TaskData, TaskRequest

_HOMES = {
    "rankfold.tasks.load": "SPLITS choose_metrics limit_rows load_task",
    "rankfold.tasks.registry": "NAMED_TASKS",
    "rankfold.tasks.task": "MIXTURES Task TaskData TaskRequest",
}
"""The public names by the module that each is imported from when it is first used."""

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

__getattr__ = lazy_names(__name__, _HOMES)
