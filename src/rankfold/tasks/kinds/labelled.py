"""Texts with labels: examples, token ids and model outputs that classification and regression share."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from rankfold.errors import DataError, unknown_name
from rankfold.models.base import TaskHead, head_options
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Row, Rows, Table
from rankfold.tasks.data.texts import text_of
from rankfold.tasks.kinds.kind import Batch, Collate, Examples, LabelHints, TaskKind
from rankfold.tasks.kinds.learner import Features, Learner, check_finite

logger = logging.getLogger("rankfold.tasks")

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Example:
    """One text, or pair of texts, with its label: a class id or a number; None if it is not known."""

    id: int | str
    text: str
    pair: str | None = None
    label: Any = None


class LabelledText(TaskKind):
    """Tasks with one label for each text: the model's outputs are read off a head on the whole text."""

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return a sequence classification model with an output for each class, or one for a number."""
        outputs = 1 if label_names is None else len(label_names)
        return TaskHead(
            self.name,
            AutoModelForSequenceClassification,
            "SEQ_CLS",
            outputs,
            head_options(outputs, label_names),
        )

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[Example]:
        """Return rows as texts without labels."""
        return [example_of(row, columns, index, None) for index, row in enumerate(rows)]

    def encode(self, learner: Learner, examples: Sequence[Example], *, training: bool) -> Sequence[Features]:
        """Tokenise texts or pairs, cut to the most tokens of a row."""
        if not examples:
            return []
        texts = [example.text for example in examples]
        pairs = [example.pair or "" for example in examples] if examples[0].pair is not None else None
        tokens = learner.processor(texts, pairs, truncation=True, max_length=learner.max_length)
        note_cut("texts", tokens["input_ids"], learner.max_length)
        columns: dict[str, list[Any]] = dict(tokens)
        if training:
            columns["labels"] = [example.label for example in examples]
        return [{name: values[index] for name, values in columns.items()} for index in range(len(examples))]

    def collate(self, learner: Learner) -> Collate:
        """Return the function that pads rows to the longest of their batch."""
        collator: Any = DataCollatorWithPadding(learner.processor)
        return collator

    def outputs(self, learner: Learner, examples: Sequence[Example]) -> Tensor:
        """Return the outputs of the head, one row for each example in order."""
        if not examples:
            return torch.empty(0, max(1, len(learner.label_names)))
        rows: Sequence[Features] = self.encode(learner, examples, training=False)
        chunks: list[Tensor] = []
        order: list[int] = []
        for indices, batch in learner.batches(rows, self.collate(learner)):
            chunks.append(learner.logits(batch))
            order += indices
        return torch.cat(chunks)[torch.tensor(order).argsort()]

    def finite_outputs(self, learner: Learner, examples: Sequence[Example]) -> Tensor:
        """Return the outputs of the head, if all of them can be answers.

        Raises:
            AdapterFileError: If one is not a finite number.
        """
        return check_finite(self.outputs(learner, examples), [example.id for example in examples])


class WeighedClasses(TaskKind):
    """Kinds with classes, which the loss can weigh.

    Args:
        weights: Of each class in the loss; None if all count alike.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = None if weights is None else tuple(weights)

    def weigh_classes(self, examples: Examples, weights: Mapping[str, float] | None = None) -> TaskKind:
        """Return the kind with weights in its loss; `balanced_weights` if None."""
        names = examples.label_names or ()
        for name in weights or ():
            if name not in names:
                raise unknown_name("class of class_weights", name, names)
        if weights is None:
            return type(self)(self.balanced_weights(examples.splits["train"], names))
        return type(self)([float(weights.get(name, 1.0)) for name in names])

    @abstractmethod
    def balanced_weights(self, examples: Sequence[Any], names: Sequence[str]) -> Sequence[float]:
        """Return the weights with which all classes count alike.

        Args:
            examples: Those of the training split.
            names: Class names in the order of their ids.
        """

    @property
    def has_own_loss(self) -> bool:
        """Whether classes are weighed."""
        return self.weights is not None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the model's own loss, or `weighted_loss` if the classes have weights."""
        if self.weights is None:
            return super().loss(model, batch)
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)
        return self.weighted_loss(logits, batch["labels"], weights)

    @abstractmethod
    def weighted_loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the loss of a batch, with a weight for each class.

        Args:
            logits: Outputs of the head, one for each class along the last axis.
            labels: Of the batch.
            weights: `[classes]`.
        """


def example_of(row: Row, columns: Columns, name: int | str, label: Any) -> Example:
    """Return a row as an example.

    Raises:
        DataError: If a text is missing.
    """
    pair = text_of(row, columns.pair) if columns.pair else None
    return Example(name, text_of(row, columns.text or ""), pair, label)


def labelled_examples(
    tables: Mapping[str, Table], columns: Columns, label: Callable[[Row], Any]
) -> dict[str, list[Example]]:
    """Return the rows of every split as examples, noting empty texts.

    Args:
        tables: Tables by split name.
        columns: The text, and perhaps a second one.
        label: Returns the label of a row.

    Raises:
        DataError: If a value is missing or of the wrong type, with its row.
    """
    splits = read_rows(tables, lambda row, name: example_of(row, columns, name, label(row)))
    for split, rows in splits.items():
        empty = [row.id for row in rows if not row.text.strip()]
        if empty:
            logger.info(
                "%d of %d texts of the split '%s' are empty, the first in row '%s'.",
                len(empty),
                len(rows),
                split,
                empty[0],
            )
    return splits


def read_rows(
    tables: Mapping[str, Table], read: Callable[[Row, int | str], _Value]
) -> dict[str, list[_Value]]:
    """Return the rows of every split, each read with its id.

    Args:
        tables: Tables by split name.
        read: Reads a row, given the row and its id.

    Raises:
        DataError: If rows cannot be read, with their split and numbers, and the fault of the first.
    """
    return {split: _read_table(split, table, read) for split, table in tables.items()}


def _read_table(split: str, table: Table, read: Callable[[Row, int | str], _Value]) -> list[_Value]:
    values: list[_Value] = []
    faults: dict[int, DataError] = {}
    for position, (row, name) in enumerate(zip(table.rows, _ids(table), strict=True)):
        try:
            values.append(read(row, name))
        except DataError as error:
            faults[position] = error
    if not faults:
        return values
    first, *others = faults
    more = f" ({len(others)} more cannot be read: {table.locate_rows(others)})" if others else ""
    raise DataError(f"{table.locate_rows([first], split)}{more}: {faults[first]}") from faults[first]


def _ids(table: Table) -> list[int | str]:
    """Return the ids of rows: their column `id` or `idx` if it tells them apart, else their index."""
    column = [row.get("id", row.get("idx")) for row in table.rows]
    ids = [value for value in column if isinstance(value, int | str)]
    # An id may be that of a person who wrote many rows.
    return ids if len(set(ids)) == len(column) else [index for index, _ in table.enumerate_rows()]


def note_cut(noun: str, token_ids: Sequence[Sequence[int]], max_length: int) -> None:
    """Log how many rows reach the most tokens and may have been cut.

    Args:
        noun: The name of such rows in the message, such as "texts".
        token_ids: Those of each row.
        max_length: The most tokens.
    """
    cut = sum(len(ids) == max_length for ids in token_ids)
    if cut:
        logger.info(
            "%d of %d %s reach %d tokens and may have been cut; --max-length takes more.",
            cut,
            len(token_ids),
            noun,
            max_length,
        )
