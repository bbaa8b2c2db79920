"""A mixture: several tasks that one adapter learns at once, as one task.

In the training split every task has as many rows as the smallest, so that none drowns the others.
Rows and classes are named after their task, so one head tells all classes apart.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from statistics import mean
from typing import TypeVar

from rankfold.errors import SpecError
from rankfold.models.kind import Kind
from rankfold.tasks.kinds.examples import Example, Examples, Instruction
from rankfold.tasks.kinds.predict import Evaluation
from rankfold.tasks.metrics import trivial_predictions
from rankfold.tasks.task import Task, TaskData

SEPARATOR = "+"
_MARK = ":"

_Item = TypeVar("_Item", Example, Instruction)


def mixed(parts: Sequence[TaskData], *, is_even: bool = True) -> TaskData:
    """Return several tasks as one.

    Args:
        parts: The tasks: all classifications, or all instructions.
        is_even: Whether each has as many training rows as the smallest, or all that it has.

    Raises:
        SpecError: If a task is there twice, or they cannot be learned together.
    """
    _check(parts)
    names = tuple(part.task.name for part in parts)
    licences = dict.fromkeys(part.task.licence for part in parts if part.task.licence)
    task = Task(
        SEPARATOR.join(names),
        parts[0].kind,
        max((part.task.metrics for part in parts), key=len) if _generates(parts) else ("accuracy",),
        None if _generates(parts) else tuple(f"{name}{_MARK}{label}" for name, label in _labels(parts)),
        "; ".join(licences) or None,
        names,
        # Whichever task is raised raises the mixture, which has no other version of its own.
        1 + sum((part.task.version or 1) - 1 for part in parts),
    )
    first_ids = [0, *accumulate(len(part.examples.label_names or ()) for part in parts)]

    def example(part: int, item: Example) -> Example:
        return replace(item, id=f"{names[part]}{_MARK}{item.id}", label=int(item.label) + first_ids[part])

    def instruction(part: int, item: Instruction) -> Instruction:
        return replace(item, id=f"{names[part]}{_MARK}{item.id}")

    examples = Examples(
        parts[0].kind,
        task.label_names,
        _joined([part.examples.labelled for part in parts], example, is_even=is_even),
        _joined([part.examples.instructions for part in parts], instruction, is_even=is_even),
    )
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    return TaskData(task, parts[0].kind, SEPARATOR.join(part.source for part in parts), digest, examples)


def rows_by_part(task: Task, ids: Sequence[int | str]) -> dict[str, list[int]]:
    """Return at which places the rows of each part stand; a task that is no mixture is one part."""
    places: dict[str, list[int]] = {part: [] for part in task.parts or ("",)}
    for place, identifier in enumerate(ids):
        places[str(identifier).partition(_MARK)[0] if task.parts else ""].append(place)
    return places


def label_names_of(task: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the class names of one task, from those of a mixture; None if they are not known."""
    prefix = f"{task}{_MARK}"
    found = tuple(name.removeprefix(prefix) for name in names or () if name.startswith(prefix))
    return found or None


def as_part(task: str, examples: Examples, learned: Sequence[str]) -> Examples:
    """Return the examples of one task with the classes of the mixture that it was learned in.

    Args:
        task: Its name.
        examples: With the classes of the task alone, in the order of the mixture.
        learned: The classes of the mixture.
    """
    first = next(place for place, name in enumerate(learned) if name.startswith(f"{task}{_MARK}"))
    labelled = {
        split: [replace(item, label=int(item.label) + first) for item in items]
        for split, items in examples.labelled.items()
    }
    return replace(examples, label_names=tuple(learned), labelled=labelled)


def with_parts(task: Task, evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics of a measurement, and for a mixture the accuracy on each of its tasks."""
    labels, predictions = evaluation.labels, evaluation.predictions
    parts = {
        f"{part}{_MARK}accuracy": mean(float(labels[place] == predictions[place]) for place in places)
        for part, places in rows_by_part(task, evaluation.ids).items()
        if task.parts and places
    }
    return evaluation.metrics | parts


def guesses(
    task: Task, kind: Kind, train: Sequence[tuple[int | str, float]], ids: Sequence[int | str]
) -> list[float] | None:
    """Return what a model predicts that never looks at a row, only at the task it is from.

    None if training has nothing to guess by for one of the tasks.

    Args:
        task: What is learned.
        kind: Classes get the commonest one, numbers the mean.
        train: Id and label of the rows of the training split.
        ids: Of the rows to be predicted.
    """
    known = rows_by_part(task, [identifier for identifier, _ in train])
    found = [0.0] * len(ids)
    for part, places in rows_by_part(task, ids).items():
        seen = [train[place][1] for place in known[part]]
        if places and not seen:
            return None
        for place, guess in zip(places, trivial_predictions(kind, seen, len(places)), strict=True):
            found[place] = guess
    return found


def _check(parts: Sequence[TaskData]) -> None:
    names = [part.task.name for part in parts]
    whole = SEPARATOR.join(names)
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"the task '{name}' is in the mixture '{whole}' twice; name it once.")
        if _MARK in name:
            raise SpecError(f"the task '{name}' of the mixture '{whole}' has a '{_MARK}'; rename its folder.")
    kinds = {part.task.name: part.kind for part in parts}
    if Kind.REGRESSION in kinds.values() or len(set(kinds.values())) > 1:
        listed = ", ".join(f"'{name}' is a {kind.value}" for name, kind in kinds.items())
        raise SpecError(
            f"the tasks of the mixture '{whole}' cannot be learned together: {listed}; "
            "take classifications only, or instructions only (--kind may make them the same)."
        )


def _generates(parts: Sequence[TaskData]) -> bool:
    return parts[0].kind is Kind.INSTRUCTION


def _labels(parts: Sequence[TaskData]) -> list[tuple[str, str]]:
    return [(part.task.name, label) for part in parts for label in part.examples.label_names or ()]


def _joined(
    parts: Sequence[Mapping[str, Sequence[_Item]]], rename: Callable[[int, _Item], _Item], *, is_even: bool
) -> dict[str, list[_Item]]:
    """Return the rows of all parts, split by split."""
    joined: dict[str, list[_Item]] = {}
    for split in parts[0]:
        fewest = min(len(part[split]) for part in parts)
        joined[split] = [
            rename(number, item)
            for number, part in enumerate(parts)
            for item in (drawn(part[split], fewest) if split == "train" and is_even else part[split])
        ]
    return joined


_SEED = 0

_Value = TypeVar("_Value")


def drawn(items: Sequence[_Value], count: int) -> Sequence[_Value]:
    """Return `count` of some rows in their order, or all if there are not more."""
    if count >= len(items):
        return items
    generator = random.Random(_SEED)  # noqa: S311 (a sample is no secret)
    return [items[place] for place in sorted(generator.sample(range(len(items)), count))]
