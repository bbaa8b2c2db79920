"""A task with fewer rows than its data has."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from rankfold.bench.tasks.mixture import rows_by_part
from rankfold.bench.tasks.sample import drawn
from rankfold.bench.tasks.task import Task, TaskData
from rankfold.errors import SpecError
from rankfold.train.data.examples import Example, Instruction

_Item = TypeVar("_Item", Example, Instruction)


def limited(data: TaskData, limits: Mapping[str, int | None]) -> TaskData:
    """Return a task with at most so many rows, drawn with a fixed seed.

    Args:
        data: The task.
        limits: By split; None keeps all rows. A mixture keeps the same share of its limit for each task.

    Raises:
        SpecError: If a mixture has more tasks than rows are left.
    """
    examples = data.examples
    return replace(
        data,
        examples=replace(
            examples,
            labelled={
                split: _kept(data.task, rows, limits.get(split)) for split, rows in examples.labelled.items()
            },
            instructions={
                split: _kept(data.task, rows, limits.get(split))
                for split, rows in examples.instructions.items()
            },
        ),
    )


def _kept(task: Task, rows: Sequence[_Item], limit: int | None) -> Sequence[_Item]:
    if limit is None or limit >= len(rows):
        return rows
    parts = rows_by_part(task, [row.id for row in rows])
    if limit < len(parts):
        raise SpecError(
            f"{limit} rows are too few for the {len(parts)} tasks of '{task.name}'; give at least one a task."
        )
    return [rows[place] for places in parts.values() for place in drawn(places, limit // len(parts))]
