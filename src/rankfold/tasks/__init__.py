"""Tasks: data with a known meaning and a metric. Named ones, an embedded one, and the user's own."""

from rankfold.tasks.load import SPLITS, limited, load_task, scoring_of
from rankfold.tasks.registry import NAMED
from rankfold.tasks.task import MIXTURES, Task, TaskData, TaskRequest

__all__ = [
    "MIXTURES",
    "NAMED",
    "SPLITS",
    "Task",
    "TaskData",
    "TaskRequest",
    "limited",
    "load_task",
    "scoring_of",
]
