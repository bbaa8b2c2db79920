"""From a task's name or a path to checked examples, with everything a record says about them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from rankfold.errors import DataError, SpecError
from rankfold.files import sha256_of_rows
from rankfold.tasks.data.columns import (
    Columns,
    check_columns,
    check_no_preferences,
    find_columns,
    is_question,
)
from rankfold.tasks.data.decode import ReadOptions
from rankfold.tasks.data.odd_rows import content_keys, drop_missing, duplicate_findings
from rankfold.tasks.data.picture_columns import pictures_of, sha256_of_pictures
from rankfold.tasks.data.pictures import PictureFolder
from rankfold.tasks.data.questions import as_questions
from rankfold.tasks.data.read import Source, Table, find_source, read_split
from rankfold.tasks.data.splits import Stratum, check_groups, hold_out, recommend_groups
from rankfold.tasks.data.table import Finding, rows_to_hash
from rankfold.tasks.embedded import EMBEDDED_TASKS
from rankfold.tasks.kinds import Examples, LabelHints, claiming_kind, find_kind, infer_kind
from rankfold.tasks.metrics import metric_name
from rankfold.tasks.mixture import as_part, label_names_of, mix, rows_by_part, sample
from rankfold.tasks.registry import as_choices, find_task
from rankfold.tasks.task import MIXTURES, SEPARATOR, Task, TaskData, TaskRequest

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
    parts = [
        replace(request, task=name, learned_names=label_names_of(name, request.learned_names))
        for name in names
    ]
    tasks = [_load_one(part, is_causal=is_causal, splits=splits) for part in parts]
    return mix(tasks, is_even=request.mixture == MIXTURES[0])


def _load_one(request: TaskRequest, *, is_causal: bool, splits: Sequence[str]) -> TaskData:
    task, source = find_task(request)
    reader = _Reader(task, source, request)
    tables = reader.tables(splits)
    rows = next(iter(tables.values())).rows
    check_no_preferences(rows[0], request.columns)
    name = request.kind or task.kind
    kind = claiming_kind(rows, request.columns) if name is None else find_kind(name)
    columns = (find_columns if kind is None else kind.columns)(rows, request.columns)
    kind = kind or infer_kind(rows, columns, is_causal=is_causal)
    if request.chat_template is not None and not kind.uses_chat_template:
        raise SpecError(f"a chat template is of no use to the kind {kind.name}; leave --chat-template out.")
    if columns.group is not None or kind.reads_training:
        tables = reader.with_training(tables)
    # A part of the mixture that was learned has its classes among those of the others.
    part = label_names_of(task.name, request.learned_names)
    hints = LabelHints(
        task.label_names,
        part or request.learned_names,
        task.choice_word or "answer",
        request.learned_settings,
        request.decimal,
        is_published=task.version is not None,
        chat_template=request.chat_template,
    )
    findings: list[Finding] = [] if source is None else [*source.findings]
    findings += dict.fromkeys(finding for table in tables.values() for finding in table.findings)
    check_columns({split: table.rows for split, table in tables.items()}, columns)
    if request.drops_missing:
        tables, remarks = drop_missing(tables, columns, takes_empty_labels=kind.takes_empty_labels)
        findings += remarks
    if "validation" in splits and (request.holds_out or "validation" not in tables):
        tables, remarks = _hold_out(
            request, task, tables, kind.strata(tables["train"], columns, hints), columns
        )
        findings += remarks
    findings += _see_to_groups(tables, columns)
    own_tables = {split: tables[split] for split in splits}
    is_own = request.task is None or request.data is not None
    if is_own:
        findings.append(Finding("columns", f"columns read: {columns.summary(rows[0])}."))
    read = (
        {"train": tables["train"], **own_tables} if kind.reads_training and "train" in tables else own_tables
    )
    read, read_columns, remarks = _as_questions(read, columns)
    findings += remarks
    examples = kind.examples(read, read_columns, hints).part(splits)
    if is_own:
        has_classes = examples.label_names is not None
        findings += duplicate_findings(tables, columns, has_classes=has_classes)
    if part and request.learned_names:
        examples = as_part(task.name, kind, examples, request.learned_names)
    metrics = kind.metrics(examples, task.metrics if task.kind == kind.name else ())
    task = replace(task, kind=kind.name, metrics=metrics, label_names=examples.label_names)
    return TaskData(
        task,
        kind,
        EMBEDDED_TASKS[task.name].source if source is None else source.name,
        _sha256(own_tables, examples),
        examples,
        findings=tuple(dict.fromkeys(findings)),
        columns=columns,
        unused_columns=columns.unread_names(rows[0]),
    )


def _sha256(tables: Mapping[str, Table], examples: Examples) -> str:
    """Return the hash of the content of rows and of their pictures, which others may have replaced."""
    rows = sha256_of_rows({split: rows_to_hash(table) for split, table in tables.items()})
    contents = sha256_of_pictures(pictures_of(examples.splits))
    return hashlib.sha256(f"{rows}{contents}".encode()).hexdigest() if contents else rows


def _as_questions(
    tables: Mapping[str, Table], columns: Columns
) -> tuple[Mapping[str, Table], Columns, list[Finding]]:
    """Return questions with choices in columns of any names with the usual ones; other rows as they are."""
    if columns.choices is None and not is_question(next(iter(tables.values())).rows[0], columns):
        return tables, columns, []
    tables, findings = as_questions(tables, columns.question)
    return tables, Columns(group=columns.group), findings


@final
@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the splits of one task, none of them cut yet.

    Args:
        task: The task.
        source: Where its data is; None for the embedded data.
        request: Says how files are read, and whether validation rows are held out of the training split.
    """

    task: Task
    source: Source | None
    request: TaskRequest

    def tables(self, splits: Sequence[str]) -> Mapping[str, Table]:
        """Return the splits that are asked for, and the training split where validation is cut from it.

        Raises:
            DataError: If a split is missing or cannot be read.
        """
        tables: dict[str, Table] = {}
        for split in splits:
            name = "train" if split == "validation" and self.request.holds_out else split
            table = tables.get(name) or self._read(name)
            if table is None and name == "validation":
                name, table = "train", self._read("train")
            if table is None:
                source = self.task.name if self.source is None else self.source.name
                raise DataError(f"'{source}' has no split '{split}'; add it, or use a split that it has.")
            tables[name] = table
        return tables

    def with_training(self, tables: Mapping[str, Table]) -> Mapping[str, Table]:
        """Return the splits with that for training, if there is one."""
        train = None if self.source is None or "train" in tables else self._read("train")
        return tables if train is None else {"train": train, **tables}

    def _read(self, split: str) -> Table | None:
        if self.source is None:
            return EMBEDDED_TASKS[self.task.name].read().get(split)
        table = read_split(self.source, split, self.request.reading)
        return table if table is None or self.task.choice_word is None else as_choices(table)


def _hold_out(
    request: TaskRequest,
    task: Task,
    tables: Mapping[str, Table],
    strata: Sequence[Stratum],
    columns: Columns,
) -> tuple[Mapping[str, Table], list[Finding]]:
    """Return the splits with a validation split that is cut from the training split, and a remark on it."""
    train = tables["train"]
    # The cut of a published task is part of its version.
    keys = content_keys(train, columns) if task.version is None else None
    rest, validation = hold_out(train, strata, columns.group, keys)
    copies = ", copies together" if keys and len(set(keys)) < len(keys) else ""
    message = (
        f"'{request.data or task.name}' has no validation split; held out {len(validation.rows):,} of its "
        f"{len(train.rows):,} rows{copies}."
    )
    findings = [] if request.holds_out else [Finding("held_out", message)]
    return {**tables, "train": rest, "validation": validation}, findings


def _see_to_groups(tables: Mapping[str, Table], columns: Columns) -> list[Finding]:
    """Check that groups are apart; where nobody named any, return a remark if that matters."""
    if columns.group is None:
        return recommend_groups(tables, columns)
    check_columns({split: table.rows for split, table in tables.items()}, columns)
    check_groups(tables, columns.group)
    return []


def read_whole(data: str, split: str | None = None, options: ReadOptions | None = None) -> Table:
    """Read all rows of a file, or of one split of a folder or a hub dataset.

    Args:
        data: As for `find_source`.
        split: Which split; None if there is only one.
        options: The encoding and delimiter of files, and the most bytes.

    Raises:
        DataError: If there is no such data or split, or it cannot be read.
        SpecError: If there are several splits and none is named.
    """
    source = find_source(data)
    if split is None and len(source.files) != 1:
        names = f" ({', '.join(source.files)})" if source.files else ""
        raise SpecError(f"'{data}' has several splits{names}; name one with --split.")
    table = read_split(source, split or next(iter(source.files)), options)
    if table is None:
        raise DataError(f"'{data}' has no split '{split}'; leave --split out, or name a split that it has.")
    return table


def picture_folder(data: str, split: str | None = None) -> PictureFolder:
    """Return the folder at which paths of pictures begin in rows that `read_whole` returned."""
    files = find_source(data).files
    paths = files.get(split or next(iter(files), ""), ())
    return PictureFolder.beside(paths[0]) if paths else PictureFolder(None)


def choose_metrics(data: TaskData, names: Sequence[str]) -> TaskData:
    """Return a task that is measured by some metrics first, and by its usual ones behind them.

    Args:
        data: The task.
        names: Ours, or those that other libraries have; the first is the primary one.

    Raises:
        SpecError: If the kind of task has no such metric, with the nearest one.
    """
    possible = data.kind.possible_metrics(data.examples) or data.task.metrics
    chosen = tuple(metric_name(name, possible, data.kind.name) for name in names)
    return replace(data, task=replace(data.task, metrics=tuple(dict.fromkeys((*chosen, *data.task.metrics)))))


def limit_rows(data: TaskData, limits: Mapping[str, int | None]) -> TaskData:
    """Return a task with at most so many rows, drawn with a fixed seed.

    Args:
        data: The task.
        limits: By split; None keeps all rows. A mixture keeps the same share of its limit for each task.

    Raises:
        SpecError: If a mixture has more tasks than rows are left.
    """
    splits = {
        split: _limit_split(data.task, rows, limits.get(split))
        for split, rows in data.examples.splits.items()
    }
    return replace(data, examples=replace(data.examples, splits=splits))


def _limit_split(task: Task, rows: Sequence[Any], limit: int | None) -> Sequence[Any]:
    if limit is None or limit >= len(rows):
        return rows
    parts = rows_by_part(task, [row.id for row in rows])
    if limit < len(parts):
        raise SpecError(
            f"{limit} rows are too few for the {len(parts)} tasks of '{task.name}'; give at least one a task."
        )
    return [rows[index] for indices in parts.values() for index in sample(indices, limit // len(parts))]
