"""Tasks: data with a known meaning and a metric, and the request for one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from rankfold.errors import TrainingError
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.decode import ReadOptions
from rankfold.tasks.data.numbers import Decimal
from rankfold.tasks.data.table import Finding

if TYPE_CHECKING:  # this module loads without torch
    from pydantic import JsonValue

    from rankfold.tasks.kinds.kind import Evaluation, Examples, TaskKind
    from rankfold.tasks.kinds.learner import Learner


@dataclass(frozen=True, slots=True)
class Task:
    """A task with a known meaning.

    Args:
        name: The name of its folder and on the command line.
        kind: The name of its kind; None if it depends on the model: a choice can be text or a class.
        metrics: The primary one first.
        label_names: Class names in the order of their ids; None if the data says, or there are none.
        licence: The terms of the data as far as they are known, for the record.
        parts: The tasks of a mixture.
        version: Raised by one whenever the same rows would be asked, labelled, cut or measured in another
            way than before, so that older results are not held against newer ones; None for a user's own.
        rows: How many rows the official splits have, as far as they are known.
        hub: Where the hub has it, as `owner/name` or `owner/name:config`; None if it is not there.
        choice_word: What its prompts call a choice, as in "solution2"; None if there are none.
    """

    name: str
    kind: str | None
    metrics: tuple[str, ...]
    label_names: tuple[str, ...] | None = None
    licence: str | None = None
    parts: tuple[str, ...] = ()
    version: int | None = None
    rows: Mapping[str, int] = field(default_factory=dict[str, int])
    hub: str | None = None
    choice_word: str | None = None


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task with its examples.

    Args:
        task: What it means; its kind, metrics and class names are known now.
        kind: Its kind.
        source: Where the rows are from.
        sha256: Hash of the content of the rows that were read.
        examples: By split.
        unused_columns: The columns of the first split that are not read.
        findings: Remarks on files, columns and splits; those on rows are in `examples`.
        columns: The columns that were read, as far as they have one of these roles; of a mixture none.
    """

    task: Task
    kind: "TaskKind"
    source: str
    sha256: str
    examples: "Examples"
    findings: tuple[Finding, ...] = ()
    columns: Columns = Columns()
    unused_columns: tuple[str, ...] = ()

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """Every remark on the data: on files, columns and splits, then on rows."""
        return (*self.findings, *self.examples.findings)

    def evaluate(self, learner: "Learner", split: str, *, is_final: bool = True) -> "Evaluation":
        """Return loss, metrics and predictions of a model on a split.

        Args:
            learner: The model, and how to run it.
            split: Name of the split.
            is_final: False may leave out predictions that take much longer than the loss.

        Raises:
            TrainingError: If the loss is not a finite number.
        """
        evaluation = self.kind.evaluate(
            learner, self.examples.splits[split], self.task.metrics, is_final=is_final
        )
        if not math.isfinite(evaluation.loss):
            raise TrainingError(
                f"the loss on the split '{split}' is {evaluation.loss}; train with a lower learning rate, "
                "or use --precision fp32."
            )
        return evaluation


SEPARATOR = "+"
"""Joins the names of the tasks of a mixture."""

Mixture = Literal["equal", "all"]
MIXTURES: tuple[Mixture, ...] = get_args(Mixture)
"""As many training rows of each task as the smallest has, or all of them."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Which data to read, and how.

    Args:
        task: The name of a task: it gives the metric and the classes, and finds the data if `data` does not.
            Several names with "+" between them are a mixture.
        data: A folder of splits, a file or a hub id.
        data_root: The folder that has a folder for each task; that of `RANKFOLD_DATA` if None.
        kind: The name of the kind of task, where it should not be inferred.
        columns: Columns whose names cannot be guessed, and the one that says whose a row is.
        learned_names: Class names in the order in which a model has learned them, if one has.
        learned_settings: The settings of the kind that a model was trained with, if one was.
        decimal: The decimal separator of numbers that are written as texts; found in the data if None.
        drops_missing: Leave out rows whose text or label is missing, instead of refusing them.
        chat_template: Name or file of a template for kinds that write conversations; the model's if None.
        holds_out: Take as validation split a tenth of the training split, even where there is another.
        mixture: How many training rows each task of a mixture has, one of `MIXTURES`.
        reading: How files are read: their encoding, the delimiter of CSV, the most bytes.
    """

    task: str | None = None
    data: str | None = None
    data_root: str | None = None
    kind: str | None = None
    columns: Columns = Columns()
    learned_names: tuple[str, ...] | None = None
    learned_settings: "Mapping[str, JsonValue] | None" = None
    decimal: Decimal | None = None
    drops_missing: bool = False
    chat_template: str | None = None
    holds_out: bool = False
    mixture: Mixture = "equal"
    reading: ReadOptions = ReadOptions()

    @property
    def name(self) -> str:
        """The task's name, or that of its data without folder and ending."""
        data = self.data or ""
        return self.task or Path(data).name.partition(".")[0] or data
