"""A mixture: several tasks that one adapter learns at once, as one task.

In the training split every task has as many rows as the smallest, so that none drowns the others.
Rows and classes are named after their task, so one head tells all classes apart.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar

from pydantic import JsonValue

from rankfold.errors import SpecError
from rankfold.tasks.kinds.kind import Evaluation, Examples, TaskKind
from rankfold.tasks.metrics import measure
from rankfold.tasks.task import SEPARATOR, Task, TaskData

_MARK = ":"

_Value = TypeVar("_Value")


def mix(parts: Sequence[TaskData], *, is_even: bool = True) -> TaskData:
    """Return several tasks as one.

    Args:
        parts: The tasks, of kinds that can be learned together.
        is_even: Whether each has as many training rows as the smallest, or all that it has.

    Raises:
        SpecError: If a task is there twice, or they cannot be learned together.
    """
    kind = _mixture_kind(parts)
    names = tuple(part.task.name for part in parts)
    licences = dict.fromkeys(part.task.licence for part in parts if part.task.licence)
    labels = [
        f"{part.task.name}{_MARK}{label}" for part in parts for label in part.examples.label_names or ()
    ]
    task = Task(
        SEPARATOR.join(names),
        kind.name,
        kind.mixture_metrics([part.task.metrics for part in parts]),
        tuple(labels) or None,
        "; ".join(licences) or None,
        names,
        # Whichever task is raised raises the mixture, which has no other version of its own.
        1 + sum((part.task.version or 1) - 1 for part in parts),
    )
    first_ids = [0, *accumulate(len(part.examples.label_names or ()) for part in parts)]
    splits: dict[str, list[Any]] = {}
    for split in parts[0].examples.splits:
        rows = [part.examples.splits[split] for part in parts]
        if split == "train" and is_even:
            fewest = min(map(len, rows))
            rows = [sample(items, fewest) for items in rows]
        splits[split] = [
            replace(kind.shift_label(item, first), id=f"{name}{_MARK}{item.id}")
            for name, first, items in zip(names, first_ids, rows, strict=False)
            for item in items
        ]
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    source = SEPARATOR.join(part.source for part in parts)
    return TaskData(
        task,
        kind,
        source,
        digest,
        Examples(task.label_names, splits, settings=_common_settings(parts)),
        tuple(finding for part in parts for finding in part.all_findings),
    )


def rows_by_part(task: Task, ids: Sequence[int | str]) -> dict[str, list[int]]:
    """Return the indices of the rows of each part; a task that is no mixture is one part."""
    indices: dict[str, list[int]] = {part: [] for part in task.parts or ("",)}
    for index, name in enumerate(ids):
        indices[str(name).partition(_MARK)[0] if task.parts else ""].append(index)
    return indices


def label_names_of(task: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the class names of one task, from those of a mixture; None if they are not known."""
    prefix = f"{task}{_MARK}"
    short = tuple(name.removeprefix(prefix) for name in names or () if name.startswith(prefix))
    return short or None


def as_part(task: str, kind: TaskKind, examples: Examples, learned_names: Sequence[str]) -> Examples:
    """Return the examples of one task with the classes of the mixture that it was learned in.

    Args:
        task: Its name.
        kind: Its kind.
        examples: With the classes of the task alone, in the order of the mixture.
        learned_names: The classes of the mixture.
    """
    first = next(index for index, name in enumerate(learned_names) if name.startswith(f"{task}{_MARK}"))
    splits = {
        split: [kind.shift_label(item, first) for item in items] for split, items in examples.splits.items()
    }
    return replace(examples, label_names=tuple(learned_names), splits=splits)


def with_parts(task: Task, evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics of an evaluation, and for a mixture the accuracy on each of its tasks."""
    labels, predictions = evaluation.labels, evaluation.predictions
    metrics = dict(evaluation.metrics)
    for part, indices in rows_by_part(task, evaluation.ids).items():
        if task.parts and indices:
            pairs = [labels[index] for index in indices], [predictions[index] for index in indices]
            metrics[f"{part}{_MARK}accuracy"] = measure(("accuracy",), *pairs)["accuracy"]
    return metrics


def baselines(data: TaskData, evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Return the metrics of models that never look at a row, only at the task it is from.

    Args:
        data: With its training split.
        evaluation: The labels, and which rows they are of.

    Returns:
        Metrics by the name of the baseline, behind those that were measured with the model; without labels,
        or where training has none for one of the tasks, only these.
    """
    measured = {name: dict(scores) for name, scores in evaluation.baselines.items()}
    train = [(item.id, data.kind.label(item)) for item in data.examples.splits["train"]]
    train = [(name, label) for name, label in train if label is not None]
    training = rows_by_part(data.task, [name for name, _ in train])
    parts = {part: indices for part, indices in rows_by_part(data.task, evaluation.ids).items() if indices}
    if not parts or any(not training[part] for part in parts):
        return measured
    possible = {data.task.metrics[0], *data.kind.possible_metrics(data.examples)}
    metrics = [name for name in data.task.metrics if name in possible]
    scores = measured
    for name, constant in data.kind.baselines.items():
        predictions: list[Any] = [None] * len(evaluation.ids)
        for part, indices in parts.items():
            guess = constant([train[index][1] for index in training[part]])
            for index in indices:
                predictions[index] = guess
        scores[name] = data.kind.score(metrics, evaluation.labels, predictions)
    return scores


def _mixture_kind(parts: Sequence[TaskData]) -> TaskKind:
    names = [part.task.name for part in parts]
    whole = SEPARATOR.join(names)
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"the task '{name}' is in the mixture '{whole}' twice; name it once.")
        if _MARK in name:
            raise SpecError(f"the task '{name}' of the mixture '{whole}' has a '{_MARK}'; rename its folder.")
    kinds = [part.kind for part in parts]
    if (kind := kinds[0].mixture_kind(kinds)) is None:
        kinds_text = ", ".join(f"'{part.task.name}' is of kind {part.kind.name}" for part in parts)
        raise SpecError(
            f"the tasks of the mixture '{whole}' cannot be learned together: {kinds_text}; "
            "take classifications only, or instructions only (--kind may make them the same)."
        )
    return kind


def _common_settings(parts: Sequence[TaskData]) -> dict[str, JsonValue]:
    """Return the settings of all parts; one learner has each of them once."""
    settings: dict[str, JsonValue] = {}
    for part in parts:
        for name, value in part.examples.settings.items():
            if settings.setdefault(name, value) != value:
                whole = SEPARATOR.join(part.task.name for part in parts)
                raise SpecError(
                    f"the tasks of the mixture '{whole}' cannot be learned together: they differ in {name} "
                    f"({settings[name]} and {value}); train each alone."
                )
    return settings


_SEED = 0


def sample(items: Sequence[_Value], count: int) -> Sequence[_Value]:
    """Return `count` of some rows in their order, or all if there are not more."""
    if count >= len(items):
        return items
    generator = random.Random(_SEED)  # noqa: S311 (a sample is no secret)
    return [items[index] for index in sorted(generator.sample(range(len(items)), count))]
