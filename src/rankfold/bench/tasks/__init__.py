"""Tasks: data with a known meaning and a metric. Named ones, an embedded one, and the user's own."""

from rankfold.bench.task_request import MIXTURES, TaskRequest
from rankfold.bench.tasks.limit import limited
from rankfold.bench.tasks.load import SPLITS, load_task
from rankfold.bench.tasks.named import NAMED
from rankfold.bench.tasks.scored import scoring_of
from rankfold.bench.tasks.task import Task, TaskData

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
