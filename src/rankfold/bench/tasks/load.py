"""From a task's name or a path to checked examples, with everything a record says about them."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankfold.bench.tasks.bbc_news import SOURCE, read_bbc_news
from rankfold.bench.tasks.mixture import SEPARATOR, label_names_of, mixed
from rankfold.bench.tasks.named import NAMED
from rankfold.bench.tasks.task import Task, TaskData
from rankfold.errors import DataError, SpecError, unknown_name
from rankfold.train.columns import Columns, check_columns, find_columns, infer_kind
from rankfold.train.data import Source, Table, find_source, read_split
from rankfold.train.digest import sha256_of_rows
from rankfold.train.examples import Examples, make_examples
from rankfold.train.groups import check_groups, recommend_groups
from rankfold.train.hold_out import hold_out
from rankfold.train.metrics import ANSWER_LOSS, default_metrics
from rankfold.train.models import Kind

logger = logging.getLogger("rankfold.bench")

EMBEDDED = "bbc_news"
DATA_ROOT = "RANKFOLD_DATA"
SPLITS = ("train", "validation", "test")
TRAINING_SPLITS = SPLITS[:2]


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Which data to read, and how.

    Args:
        task: The name of a task: it gives the metric and the classes, and finds the data if `data` does not.
            Several names with "+" between them are a mixture.
        data: A folder of splits, a file or a hub id.
        data_root: The folder that has a folder for each task; that of `RANKFOLD_DATA` if None.
        kind: What is learned, where it should not be inferred.
        columns: Columns whose names cannot be guessed.
        label_names: Class names in the order of their ids, where they are known already.
        holds_out: Take as validation split a tenth of the training split, even where there is another.
    """

    task: str | None = None
    data: str | None = None
    data_root: str | None = None
    kind: str | None = None
    columns: Columns = Columns()
    label_names: tuple[str, ...] | None = None
    holds_out: bool = False


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
    parts = [
        replace(request, task=name, label_names=label_names_of(name, request.label_names)) for name in names
    ]
    return mixed([_load_one(part, is_causal=is_causal, splits=splits) for part in parts])


def _load_one(request: TaskRequest, *, is_causal: bool, splits: Sequence[str]) -> TaskData:
    task, source = _find(request)
    known = _tables(request, source, splits)
    tables = {split: known[split] for split in splits}
    rows = next(iter(tables.values())).rows
    columns = find_columns(rows, request.columns)
    _see_to_groups(known, source, columns)
    kind = _kind(request.kind) or task.kind or infer_kind(rows, columns, is_causal=is_causal)
    label_names = request.label_names or task.label_names
    examples = make_examples(tables, columns, kind, label_names, task.choice_word)
    task = replace(task, kind=kind, metrics=_metrics(task, examples), label_names=examples.label_names)
    sha256 = sha256_of_rows({split: table.rows for split, table in tables.items()})
    return TaskData(task, kind, SOURCE if source is None else source.name, sha256, examples)


def _find(request: TaskRequest) -> tuple[Task, Source | None]:
    """Return the task and its source; None is the embedded data."""
    name = request.task
    if request.data is not None:
        own = Task(Path(request.data).name.partition(".")[0] or request.data, None, ())
        return (own if name is None else _named(name)), find_source(request.data)
    if name is None:
        raise SpecError("neither a task nor data is given; name a task with --task or data with --data.")
    if name == EMBEDDED:
        return NAMED[name], None
    root = request.data_root or os.environ.get(DATA_ROOT)
    folder = Path(root).expanduser() / name if root else None
    if folder is not None and folder.is_dir():
        return NAMED.get(name, Task(name, None, ())), find_source(str(folder))
    task = _named(name)
    found = (
        f"there is no folder '{folder}'" if folder else f"the data of the task '{task.name}' is not embedded"
    )
    raise DataError(
        f"{found}; name the folder that holds a folder '{name}' with --data-root or {DATA_ROOT}, "
        "or the data itself with --data."
    )


def _named(name: str) -> Task:
    if name not in NAMED:
        raise unknown_name("task", name, NAMED)
    return NAMED[name]


def _tables(request: TaskRequest, source: Source | None, splits: Sequence[str]) -> Mapping[str, Table]:
    """Return the splits that are asked for, and what else had to be read for them."""
    wanted = ("train",) if request.holds_out else splits
    tables = read_bbc_news() if source is None else _read(source, request.columns, wanted)
    if not request.holds_out:
        return tables
    kept, held = _cut(tables["train"], request.columns)
    return {"train": kept, "validation": held}


def _read(source: Source, columns: Columns, splits: Sequence[str]) -> Mapping[str, Table]:
    tables: dict[str, Table] = {}
    for split in splits:
        table = read_split(source, split)
        if table is not None:
            tables[split] = table
    if "validation" in splits and "validation" not in tables:
        train = tables.get("train") or read_split(source, "train")
        if train is not None:
            tables["train"], tables["validation"] = _cut(train, columns)
            logger.info(
                "'%s' has no validation split; held out %d of its %d rows.",
                source.name,
                len(tables["validation"].rows),
                len(train.rows),
            )
    for split in splits:
        if split not in tables:
            raise DataError(f"'{source.name}' has no split '{split}'; add it, or use a split that it has.")
    return tables


def _cut(train: Table, columns: Columns) -> tuple[Table, Table]:
    found = find_columns(train.rows, columns)
    return hold_out(train, found.label, found.group)


def _see_to_groups(tables: Mapping[str, Table], source: Source | None, columns: Columns) -> None:
    """Check that groups are apart; where nobody named any, say so if that matters."""
    if columns.group is None:
        recommend_groups(tables, columns)
        return
    # Nobody who is trained on may be measured, even where only another split is read.
    train = None if source is None or "train" in tables else read_split(source, "train")
    everything = tables if train is None else {"train": train, **tables}
    check_columns({split: table.rows for split, table in everything.items()}, columns)
    check_groups(everything, columns.group)


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
