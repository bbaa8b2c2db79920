"""From a task's name or a path to checked examples, with everything a record says about them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from rankfold.errors import DataError, SpecError, unknown_name
from rankfold.files import sha256_of_rows
from rankfold.models.kind import Kind
from rankfold.tasks.bbc_news import SOURCE, read_bbc_news
from rankfold.tasks.data.columns import Columns, check_columns, find_columns, infer_kind
from rankfold.tasks.data.read import Source, Table, read_split
from rankfold.tasks.data.splits import check_groups, hold_out, recommend_groups
from rankfold.tasks.kinds.examples import Example, Examples, Instruction, make_examples
from rankfold.tasks.kinds.scoring import Scoring, check_scoring
from rankfold.tasks.metrics import ANSWER_LOSS, default_metrics
from rankfold.tasks.mixture import SEPARATOR, as_part, drawn, label_names_of, mixed, rows_by_part
from rankfold.tasks.published import as_choices
from rankfold.tasks.registry import find_task
from rankfold.tasks.task import MIXTURES, Task, TaskData, TaskRequest

logger = logging.getLogger("rankfold.bench")

SPLITS = ("train", "validation", "test", "validation_mismatched")
TRAINING_SPLITS = SPLITS[:2]


def load_task(request: TaskRequest, *, is_causal: bool, splits: Sequence[str] = TRAINING_SPLITS) -> TaskData:
    """Read splits of a task; a validation split that is not there, or not to be used, is cut from training.

    Args:
        request: Which task.
        is_causal: Whether the model generates text, which decides how questions with choices are learned.
        splits: Which splits; the first defines the labels, unless they are known.

    Raises:
        DataError: If the data cannot be found, read or understood.
        SpecError: If the task or the kind is unknown, neither task nor data is given, or the tasks of a
            mixture cannot be learned together.
    """
    names = (request.task or "").split(SEPARATOR)
    if len(names) == 1:
        return _load_one(request, is_causal=is_causal, splits=splits)
    if not all(names):
        raise SpecError(f"the mixture '{request.task}' has a task without a name; write it as 'mrpc+sst2'.")
    if request.data is not None:
        raise SpecError(
            f"the mixture '{request.task}' cannot be read from the one place '{request.data}'; "
            "name the folder that has a folder for each task with --data-root."
        )
    parts = [replace(request, task=name, learned=label_names_of(name, request.learned)) for name in names]
    loaded = [_load_one(part, is_causal=is_causal, splits=splits) for part in parts]
    return mixed(loaded, is_even=request.mixture == MIXTURES[0])


def _load_one(request: TaskRequest, *, is_causal: bool, splits: Sequence[str]) -> TaskData:
    task, source = find_task(request)
    known = _tables(request, task, source, splits)
    tables = {split: known[split] for split in splits}
    rows = next(iter(tables.values())).rows
    columns = find_columns(rows, request.columns)
    kind = _kind(request.kind) or task.kind or infer_kind(rows, columns, is_causal=is_causal)
    if columns.group is not None or kind is Kind.INSTRUCTION:
        known = _with_training(known, source, task)
    _see_to_groups(known, columns)
    if request.task is None:
        logger.info("columns read: %s.", columns.described(rows[0]))
    # A part of the mixture that was learned has its classes among those of the others.
    part = label_names_of(task.name, request.learned)
    # Which answers there are to choose from, the training split says, whatever is asked for.
    read = {"train": known["train"], **tables} if kind is Kind.INSTRUCTION and "train" in known else tables
    examples = make_examples(
        read, columns, kind, task.label_names, task.choice_word or "answer", part or request.learned
    ).part(splits)
    if part and request.learned:
        examples = as_part(task.name, examples, request.learned)
    task = replace(task, kind=kind, metrics=_metrics(task, examples), label_names=examples.label_names)
    sha256 = sha256_of_rows({split: table.rows for split, table in tables.items()})
    return TaskData(task, kind, SOURCE if source is None else source.name, sha256, examples)


def _tables(
    request: TaskRequest, task: Task, source: Source | None, splits: Sequence[str]
) -> Mapping[str, Table]:
    """Return the splits that are asked for, and what else had to be read for them."""
    wanted = ("train",) if request.holds_out else splits
    tables = read_bbc_news() if source is None else _read(source, task, request.columns, wanted)
    for split in wanted:
        if split not in tables:
            name = task.name if source is None else source.name
            raise DataError(f"'{name}' has no split '{split}'; add it, or use a split that it has.")
    if not request.holds_out:
        return tables
    kept, held = _cut(tables["train"], request.columns)
    return {"train": kept, "validation": held}


def _read(source: Source, task: Task, columns: Columns, splits: Sequence[str]) -> Mapping[str, Table]:
    tables: dict[str, Table] = {}
    for split in splits:
        table = _read_split(source, task, split)
        if table is not None:
            tables[split] = table
    if "validation" in splits and "validation" not in tables:
        train = tables.get("train") or _read_split(source, task, "train")
        if train is not None:
            tables["train"], tables["validation"] = _cut(train, columns)
            logger.info(
                "'%s' has no validation split; held out %d of its %d rows.",
                source.name,
                len(tables["validation"].rows),
                len(train.rows),
            )
    return tables


def _read_split(source: Source, task: Task, split: str) -> Table | None:
    table = read_split(source, split)
    return table if table is None or task.choice_word is None else as_choices(table)


def _cut(train: Table, columns: Columns) -> tuple[Table, Table]:
    found = find_columns(train.rows, columns)
    return hold_out(train, found.label, found.group)


def _with_training(tables: Mapping[str, Table], source: Source | None, task: Task) -> Mapping[str, Table]:
    """Return the splits with that for training, if there is one, even where only another is asked for."""
    train = None if source is None or "train" in tables else _read_split(source, task, "train")
    return tables if train is None else {"train": train, **tables}


def _see_to_groups(tables: Mapping[str, Table], columns: Columns) -> None:
    """Check that groups are apart; where nobody named any, say so if that matters."""
    if columns.group is None:
        recommend_groups(tables, columns)
        return
    check_columns({split: table.rows for split, table in tables.items()}, columns)
    check_groups(tables, columns.group)


def _kind(name: str | None) -> Kind | None:
    if name is None:
        return None
    if name not in set(Kind):
        raise unknown_name("kind", name, Kind)
    return Kind(name)


def _metrics(task: Task, examples: Examples) -> tuple[str, ...]:
    if examples.kind is Kind.INSTRUCTION:
        measured = list(examples.instructions.values())[-1]
        return ("accuracy", ANSWER_LOSS) if any(item.candidates for item in measured) else (ANSWER_LOSS,)
    if task.kind is examples.kind and task.metrics:
        return task.metrics
    return default_metrics(examples.kind, len(examples.label_names or ()))


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


def scoring_of(name: str | None, data: TaskData) -> Scoring | None:
    """Return how the answers of a task are scored; None if it has no answers to choose from.

    Args:
        name: What was asked for; `likelihood` if None.
        data: The task.

    Raises:
        SpecError: If a way was asked for that is unknown, or that the task has no use for.
    """
    check_scoring(name)
    if data.kind is Kind.INSTRUCTION and data.task.metrics[0] != ANSWER_LOSS:
        return Scoring(name or Scoring.LIKELIHOOD)
    if name is not None:
        raise SpecError(
            f"the scoring '{name}' is for questions with choices that a model answers in text, but "
            f"'{data.task.name}' is measured as {data.kind} by {data.task.metrics[0]}; leave it out."
        )
    return None
