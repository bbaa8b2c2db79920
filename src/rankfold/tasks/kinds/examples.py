"""Rows as examples: checked, with labels as ids, ready to be encoded."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from rankfold.errors import DataError
from rankfold.models.kind import Kind
from rankfold.tasks.data.columns import Columns, check_columns
from rankfold.tasks.data.labels import check_published, find_labels, label_of, not_learned, number_of
from rankfold.tasks.data.read import Row, Table
from rankfold.tasks.kinds.prompts import (
    answer_index,
    candidate_answers,
    choices_of,
    closed_answers,
    prompt_and_answer,
    text_of,
)

logger = logging.getLogger("rankfold.train")

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Example:
    """One text, or pair of texts, with what is to be predicted: a class id or a number."""

    id: int | str
    text: str
    pair: str | None
    label: int | float


@dataclass(frozen=True, slots=True)
class Instruction:
    """One prompt with its answer, and the answers it competes with (empty if it is open)."""

    id: int | str
    prompt: str
    answer: str
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of every split that was asked for.

    Args:
        kind: What is to be learned.
        label_names: Class names in the order of their ids; None unless it is a classification.
        labelled: Examples by split name, for classification and regression.
        instructions: Examples by split name, for instructions.
    """

    kind: Kind
    label_names: tuple[str, ...] | None
    labelled: Mapping[str, Sequence[Example]]
    instructions: Mapping[str, Sequence[Instruction]]

    @property
    def counts(self) -> dict[str, int]:
        """How many examples each split has."""
        return {split: len(items) for split, items in (self.labelled or self.instructions).items()}

    def part(self, splits: Iterable[str]) -> Self:
        """Return the examples of some of the splits, in this order."""
        chosen = tuple(splits)
        return replace(
            self,
            labelled={split: self.labelled[split] for split in chosen if split in self.labelled},
            instructions={split: self.instructions[split] for split in chosen if split in self.instructions},
        )


def make_examples(
    tables: Mapping[str, Table],
    columns: Columns,
    kind: Kind,
    label_names: Sequence[str] | None = None,
    choice_word: str = "answer",
    learned: Sequence[str] | None = None,
) -> Examples:
    """Turn the rows of every split into examples.

    Args:
        tables: Tables by split name; the first defines the labels.
        columns: What to read.
        kind: What is to be learned.
        label_names: The class names in the order that the data has them, where they are known.
        choice_word: What the prompt of an instruction calls a choice, where it is written here.
        learned: The class names in the order in which a model has learned them, if one has; they decide the
            ids of the labels.

    Raises:
        DataError: If a value is missing or of the wrong type, or a split has labels that the first has not,
            or that were not learned.
    """
    check_columns({split: table.rows for split, table in tables.items()}, columns)
    if kind is Kind.INSTRUCTION:
        return Examples(kind, None, {}, _instructions(tables, choice_word))
    column = columns.label
    if column is None:
        return _chosen(tables, kind, learned)
    if kind is Kind.REGRESSION:
        labelled = _labelled(tables, columns, lambda row: number_of(row, column))
        for split, rows in labelled.items():
            check_published(split, [row.label for row in rows])
        return Examples(kind, None, labelled, {})
    values = _each(tables, lambda row, _name: label_of(row, column))
    named = next(iter(tables.values())).class_names.get(column) or label_names
    labels = find_labels(column, values, named, learned)
    return Examples(
        kind, labels.names, _labelled(tables, columns, lambda row: labels.ids[label_of(row, column)]), {}
    )


def _labelled(
    tables: Mapping[str, Table], columns: Columns, label: Callable[[Row], int | float]
) -> dict[str, list[Example]]:
    def example(row: Row, name: int | str) -> Example:
        pair = text_of(row, columns.pair) if columns.pair else None
        return Example(name, text_of(row, columns.text or ""), pair, label(row))

    made = _each(tables, example)
    for split, rows in made.items():
        empty = [row.id for row in rows if not row.text.strip()]
        if empty:
            logger.info(
                "%d of %d texts of the split '%s' are empty, the first in row '%s'.",
                len(empty),
                len(rows),
                split,
                empty[0],
            )
    return made


def _chosen(tables: Mapping[str, Table], kind: Kind, learned: Sequence[str] | None) -> Examples:
    """Return questions whose answers are the same few for all of them, with these as classes."""
    names = _common_choices(tables)
    classes = names if learned is None else tuple(learned)
    ids = {place: classes.index(name) for place, name in enumerate(names) if name in classes}

    def label(row: Row) -> int:
        place = answer_index(row)
        if place not in ids:
            raise DataError(f"the answer is {not_learned([names[place]], classes)}")
        return ids[place]

    return Examples(kind, classes, _labelled(tables, Columns("question", None, "answer"), label), {})


def _common_choices(tables: Mapping[str, Table]) -> tuple[str, ...]:
    """Return the choices that all rows share: the classes of a question with a fixed set of answers."""
    different = {
        choices for found in _each(tables, lambda row, _name: choices_of(row)).values() for choices in found
    }
    if len(different) > 1:
        raise DataError(
            "the rows have different choices, which a classification head cannot tell apart; "
            "use a model that generates text, such as 'smollm2'."
        )
    return next(iter(different))


def _instructions(tables: Mapping[str, Table], choice_word: str) -> dict[str, list[Instruction]]:
    def instruction(row: Row, name: int | str) -> Instruction:
        prompt, answer = prompt_and_answer(row, choice_word)
        return Instruction(name, prompt, answer, candidate_answers(row, answer))

    read = _each(tables, instruction)
    closed = closed_answers([item.answer for item in next(iter(read.values()))])
    made = {split: [_with_candidates(item, closed) for item in items] for split, items in read.items()}
    for split, items in made.items():
        open_ones = sum(not item.candidates for item in items)
        if closed and open_ones:
            logger.info(
                "%d of %d answers of the split '%s' are none of the %d that training has; "
                "these rows are left out of the accuracy.",
                open_ones,
                len(items),
                split,
                len(closed),
            )
    return made


def _with_candidates(item: Instruction, closed: tuple[str, ...]) -> Instruction:
    if item.candidates or item.answer not in closed:
        return item
    return Instruction(item.id, item.prompt, item.answer, closed)


def _each(tables: Mapping[str, Table], read: Callable[[Row, int | str], _Value]) -> dict[str, list[_Value]]:
    """Read every row, given its name; an error says in which one it happened."""
    values: dict[str, list[_Value]] = {}
    for split, table in tables.items():
        values[split] = []
        for (place, row), name in zip(table.numbered(), _names(table), strict=True):
            try:
                values[split].append(read(row, name))
            except DataError as error:
                raise DataError(f"row {place + 1} of the split '{split}': {error}") from error
    return values


def _names(table: Table) -> list[int | str]:
    """Return what predictions call the rows: by a column `id` or `idx` that tells them apart, or by place."""
    named = [row.get("id", row.get("idx")) for row in table.rows]
    known = [name for name in named if isinstance(name, int | str)]
    # An id may be that of a person who wrote many rows.
    return known if len(set(known)) == len(named) else [place for place, _ in table.numbered()]
