"""Multi-label: any number of classes for each text or pair of texts."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn import functional

from rankfold.errors import DataError
from rankfold.models.base import TaskHead
from rankfold.tasks.data.columns import Columns, find_columns
from rankfold.tasks.data.label_findings import (
    SEPARATORS,
    counts_text,
    find_separator,
    near_duplicates,
    split_labels,
)
from rankfold.tasks.data.labels import check_label_lists, count_labels, sort_names
from rankfold.tasks.data.read import Rows, Table
from rankfold.tasks.data.table import Finding
from rankfold.tasks.kinds.kind import Evaluation, Examples, LabelHints
from rankfold.tasks.kinds.labelled import (
    Example,
    LabelledText,
    WeighedClasses,
    labelled_examples,
    read_rows,
)
from rankfold.tasks.kinds.learner import Features, Learner
from rankfold.tasks.list_metrics import SET_METRICS, score_lists

_COLUMNS = ("labels", "tags", "categories", "topics", "classes", "genres", "label")
# Between these a text is seldom one label; a comma also stands within names.
_CLEAR_SEPARATORS = (";", "|")
# A list that was written as text, as pandas writes it to CSV: ['a', 'b'], ["a"], [1, 0] or [].
_LIST_TEXT = re.compile(r"""\s*\[(\s*|\s*(['"]).*\2\s*|\s*\d+(\s*,\s*\d+)+\s*)\]\s*""", re.DOTALL)
_SEPARATOR = "separator"
_THRESHOLD = 0.5
_SHOWN_CHARACTERS = 60


class MultiLabel(WeighedClasses, LabelledText):
    """Texts with any number of classes, each predicted for itself, scored by F1.

    Labels are a list of names, or a text of names with a separator between them. A class is predicted if its
    probability is above a half; the loss is the binary cross-entropy, as transformers has it for
    `problem_type="multi_label_classification"`.
    """

    name: ClassVar[str] = "multi_label"
    takes_empty_labels: ClassVar[bool] = True
    setting_types: ClassVar[Mapping[str, type] | None] = {_SEPARATOR: str}
    metric_names: ClassVar[tuple[str, ...]] = tuple(SET_METRICS)

    def claims(self, rows: Rows, overrides: Columns) -> bool:
        """Return whether a column of labels holds lists, or texts with a separator, beside a text."""
        column = _label_column(rows, overrides)
        if column is None:
            return False
        values = [row.get(column) for row in rows]
        # Lists that are written as text are claimed too, for `examples` to refuse.
        if all(_is_label_list(value) for value in values) or _are_list_texts(values):
            return any(isinstance(value, str) for name, value in rows[0].items() if name != column)
        texts = [value for value in values if isinstance(value, str)]
        return len(texts) == len(values) and find_separator(texts) in _CLEAR_SEPARATORS

    def columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return a text, perhaps a second one, and the labels."""
        return find_columns(rows, replace(overrides, label=_label_column(rows, overrides)))

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return texts with lists of class names.

        Raises:
            DataError: If a row has no list, no row has a label, or a split has labels of its own.
        """
        column = columns.label or ""
        first = next(iter(tables))
        separator = _separator_of(tables, column, hints)
        read = _reader(tables, column, hints)
        values = read_rows(tables, lambda row, _id: read(row.get(column)))
        names = tuple(hints.learned_names or ()) or sort_names(name for row in values[first] for name in row)
        check_label_lists(column, tables, values, names, hints.learned_names)
        order = {name: place for place, name in enumerate(names)}
        splits = labelled_examples(
            tables, columns, lambda row: sorted(read(row.get(column)), key=order.__getitem__)
        )
        settings: dict[str, JsonValue] = {} if separator is None else {_SEPARATOR: separator}
        findings = () if hints.learned_names else _findings(column, values[first], separator, tables[first])
        return Examples(names, splits, tuple(findings), settings)

    def strata(self, table: Table, columns: Columns, hints: LabelHints) -> list[frozenset[str]]:
        """Return the labels of each row, each of which has to stay in the training part."""
        column, tables = columns.label or "", {"train": table}
        read = _reader(tables, column, hints)
        return read_rows(tables, lambda row, _id: frozenset(read(row.get(column))))["train"]

    def metrics(self, examples: Examples, task_metrics: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the F1 over all labels, that over classes, and the share of rows that are right."""
        return tuple(task_metrics) or ("micro_f1", "macro_f1", "exact_match")

    def balanced_weights(self, examples: Sequence[Example], names: Sequence[str]) -> list[float]:
        """Return `rows without / rows with` each class."""
        counts = Counter(name for item in examples for name in item.label)
        return [(len(examples) - counts[name]) / max(1, counts[name]) for name in names]

    def weighted_loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the binary cross-entropy, in which classes that hold have weights."""
        return functional.binary_cross_entropy_with_logits(
            logits, labels.to(logits.dtype), pos_weight=weights
        )

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return a sequence classification model with an output for each class."""
        head = super().head(label_names or ("LABEL_0", "LABEL_1"))
        options = {**head.options, "problem_type": "multi_label_classification"}
        return replace(head, options=options)

    def encode(self, learner: Learner, examples: Sequence[Example], *, training: bool) -> Sequence[Features]:
        """Tokenise texts or pairs; labels are 1 for each class that holds, and 0 for the others."""
        rows = super().encode(learner, examples, training=training)
        if not training:
            return rows
        names = learner.label_names
        return [{**row, "labels": [float(name in row["labels"]) for name in names]} for row in rows]

    def predict(self, learner: Learner, examples: Sequence[Example]) -> list[list[str]]:
        """Return the names of the classes of each example."""
        return _names_above(learner, self.finite_outputs(learner, examples))

    def answer(self, learner: Learner, examples: Sequence[Example]) -> list[dict[str, JsonValue]]:
        """Return the labels of each example, and the probability of every class."""
        outputs = self.finite_outputs(learner, examples)
        rows: list[list[float]] = cast(Any, outputs.double().sigmoid()).tolist()
        return [
            {
                "labels": list[JsonValue](labels),
                "probabilities": dict(zip(learner.label_names, row, strict=True)),
            }
            for labels, row in zip(_names_above(learner, outputs), rows, strict=True)
        ]

    def evaluate(
        self, learner: Learner, examples: Sequence[Example], metrics: Sequence[str], *, is_final: bool = True
    ) -> Evaluation:
        """Return the mean binary cross-entropy, metrics and predictions."""
        outputs = self.outputs(learner, examples)
        labels = [list(example.label) for example in examples]
        truth = [[float(name in row) for name in learner.label_names] for row in labels]
        losses = functional.binary_cross_entropy_with_logits(outputs, torch.tensor(truth), reduction="none")
        loss = losses.mean().item()
        predictions = _names_above(learner, outputs)
        # A diverged model has no metric; its loss says so.
        scores = self.score(metrics, labels, predictions) if math.isfinite(loss) else {}
        ids = [example.id for example in examples]
        return Evaluation(loss, scores, ids, labels, predictions, cast(Any, losses.mean(-1)).tolist())

    def score(
        self, metrics: Sequence[str], labels: Sequence[Any], predictions: Sequence[Any]
    ) -> dict[str, float]:
        """Return metrics of sets of class names."""
        return score_lists(metrics, labels, predictions)

    @staticmethod
    def most_common_set(labels: Sequence[Any]) -> list[str]:
        """Return the combination that most rows have, of several the first by name."""
        counts = Counter(tuple(row) for row in labels)
        return list(min(counts.items(), key=lambda item: (-item[1], item[0]))[0])

    @staticmethod
    def all_labels(labels: Sequence[Any]) -> list[str]:
        """Return every class that occurs."""
        return sorted({name for row in labels for name in row})

    baselines: ClassVar[Mapping[str, Callable[[Sequence[Any]], Any]]] = {
        "majority": most_common_set,
        "all labels": all_labels,
    }


def _reader(tables: Mapping[str, Table], column: str, hints: LabelHints) -> Callable[[object], list[str]]:
    """Return the function that reads a value of a column as class names.

    Raises:
        DataError: If its values are lists written as text, or a 0 or 1 for each class.
    """
    _check_no_list_texts(tables, column)
    class_names = next(iter(tables.values())).class_names.get(column) or hints.names
    _check_no_flags(tables, column, class_names or hints.learned_names)
    return _Reader(column, _separator_of(tables, column, hints), class_names).read


class _Reader:
    """Reads one value as class names.

    Args:
        column: Where it is, for messages.
        separator: Between names in a text; None if values are lists.
        names: What numbers stand for, if that is known.
    """

    def __init__(self, column: str, separator: str | None, names: Sequence[str] | None) -> None:
        self._column, self._separator, self._names = column, separator, names

    def read(self, value: object) -> list[str]:
        """Return the class names of a value; an empty text or list has none.

        Raises:
            DataError: If it is no list, or holds something else than names and whole numbers.
        """
        if isinstance(value, str) and self._separator is not None:
            return split_labels(value, self._separator)
        if not _is_label_list(value):
            remedy = (
                "write [] for no label, or leave out all such rows with --drop-missing"
                if value is None
                else "give a list of names"
            )
            raise DataError(f"'{self._column}' holds '{value}' where a list of labels is needed; {remedy}.")
        return list(dict.fromkeys(map(self._name, cast("list[object]", value))))

    def _name(self, item: object) -> str:
        names = self._names or ()
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(names):
            return names[item]
        return str(item)


def _label_column(rows: Rows, overrides: Columns) -> str | None:
    return overrides.label or next((name for name in _COLUMNS if name in rows[0]), None)


def _is_label_list(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, str | int) for item in cast("list[object]", value)
    )


def _are_list_texts(values: Sequence[object]) -> bool:
    """Return whether most values are lists written as text, and not all of them empty."""
    lists = [value for value in values if isinstance(value, str) and _LIST_TEXT.fullmatch(value)]
    return 2 * len(lists) > len(values) and any(value.strip("[] \t\r\n") for value in lists)


def _check_no_list_texts(tables: Mapping[str, Table], column: str) -> None:
    """Refuse lists that are written as text, whose brackets and quotes would be read as parts of names."""
    values = [row.get(column) for table in tables.values() for row in table.rows]
    if _are_list_texts(values):
        example = next(value for value in values if isinstance(value, str) and _are_list_texts([value]))
        raise DataError(
            f"'{column}' holds lists written as text, such as {example.strip()[:_SHOWN_CHARACTERS]}; "
            "write the labels with ';' between them, or JSON lines with lists."
        )


def _check_no_flags(tables: Mapping[str, Table], column: str, names: Sequence[str] | None) -> None:
    """Refuse a 0 or 1 for each class, which would be read as classes that are called "0" and "1"."""
    values = [row.get(column) for table in tables.values() for row in table.rows]
    if not values or not all(_is_label_list(value) for value in values):
        return
    rows = cast("list[list[str | int]]", values)
    width = len(rows[0])
    if width < 2 or any(len(row) != width or any(item not in (0, 1) for item in row) for row in rows):  # noqa: PLR2004
        return
    # A row of numbers of named classes has each number once.
    if not names or any(len(set(row)) < width for row in rows):
        raise DataError(
            f"'{column}' holds a 0 or 1 for each label, such as {rows[0]}; "
            'write the names of the labels that hold, such as ["a", "c"].'
        )


def _separator_of(tables: Mapping[str, Table], column: str, hints: LabelHints) -> str | None:
    """Return the separator of labels in texts; None if no value is a text."""
    learned = (hints.learned_settings or {}).get(_SEPARATOR)
    texts = [value for row in next(iter(tables.values())).rows if isinstance(value := row.get(column), str)]
    if learned is not None or not texts:
        return cast("str | None", learned)
    used = (separator for separator in SEPARATORS if any(separator in text for text in texts))
    return find_separator(texts) or next(used, SEPARATORS[0])


def _findings(
    column: str, rows: Sequence[Sequence[str]], separator: str | None, table: Table
) -> list[Finding]:
    counts = dict(count_labels(name for row in rows for name in row))
    without = sum(not row for row in rows)
    count_text = f"{len(counts)} labels in '{column}': {counts_text(counts)}; {without:,} rows have none."
    findings = [Finding("classes", count_text), *near_duplicates(column, rows, table)]
    if separator is not None:
        findings.append(
            Finding(
                "separated_labels",
                f"'{separator}' separates the labels in '{column}'; to take each text as one class, give "
                "--kind classification.",
            )
        )
    return findings


def _names_above(learner: Learner, outputs: Tensor) -> list[list[str]]:
    """Return the names of the classes whose probability is above the threshold, row by row."""
    rows: list[list[bool]] = cast(Any, outputs.sigmoid() > _THRESHOLD).tolist()
    return [[name for name, holds in zip(learner.label_names, row, strict=True) if holds] for row in rows]


KIND = MultiLabel()
