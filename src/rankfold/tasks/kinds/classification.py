"""Classification: one class for each text or pair of texts."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn import functional

from rankfold.errors import DataError
from rankfold.tasks.data.columns import CHOICE_COLUMNS, Columns, has_columns
from rankfold.tasks.data.label_findings import label_findings
from rankfold.tasks.data.labels import check_repeated, find_labels, is_measured, label_of, not_learned
from rankfold.tasks.data.read import Row, Rows, Table
from rankfold.tasks.data.splits import Stratum, value_strata
from rankfold.tasks.kinds.kind import Batch, Evaluation, Examples, LabelHints, TaskKind
from rankfold.tasks.kinds.labelled import (
    Example,
    LabelledText,
    WeighedClasses,
    labelled_examples,
    read_rows,
)
from rankfold.tasks.kinds.learner import Learner
from rankfold.tasks.kinds.prompts import answer_index, choices_of
from rankfold.tasks.metrics import AUROC, auroc, balanced_weights, measure


class Classification(WeighedClasses, LabelledText):
    """Texts in classes, scored by accuracy."""

    name: ClassVar[str] = "classification"
    setting_types: ClassVar[Mapping[str, type] | None] = {}
    metric_names: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "macro_f1",
        "weighted_f1",
        "macro_precision",
        "macro_recall",
        "balanced_accuracy",
        "matthews",
        AUROC,
    )
    default_for_causal: ClassVar[bool | None] = False

    def suits(self, rows: Rows, columns: Columns, *, is_causal: bool) -> bool:
        """Return whether labels are words or whole numbers, or choices that only a head can tell apart."""
        if columns.label is None or columns.choices is not None:
            has_choices = columns.choices is not None or has_columns(rows[0], CHOICE_COLUMNS)
            return not is_causal and has_choices
        values = [row.get(columns.label) for row in rows]
        return not isinstance(values[0], list) and not is_measured(values, columns.label)

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return texts with class ids; rows with the same few choices everywhere have these as classes."""
        column = columns.label
        if column is None:
            return _choice_examples(tables, hints.learned_names)
        values = read_rows(tables, lambda row, _id: label_of(row, column))
        names = next(iter(tables.values())).class_names.get(column) or hints.names
        labels = find_labels(column, values, names, hints.learned_names, tables=tables)
        first = next(iter(tables))
        return Examples(
            labels.names,
            self.labelled_rows(tables, columns, lambda row: labels.ids[label_of(row, column)]),
            () if hints.learned_names else tuple(label_findings(column, values[first], tables[first])),
        )

    def labelled_rows(
        self, tables: Mapping[str, Table], columns: Columns, label: Callable[[Row], Any]
    ) -> Mapping[str, Sequence[Any]]:
        """Return the rows of every split as examples with the label that a function reads off each."""
        return labelled_examples(tables, columns, label)

    def strata(self, table: Table, columns: Columns, hints: LabelHints) -> Sequence[Stratum]:
        """Return the class of each row; None for questions with choices.

        Raises:
            DataError: If a label is missing, or most rows have one of their own.
        """
        column = columns.label
        if column is None or columns.choices is not None:
            return [None] * len(table.rows)
        values = read_rows({"train": table}, lambda row, _id: label_of(row, column))["train"]
        if not (table.class_names.get(column) or hints.names or hints.learned_names):
            check_repeated(column, values)
        return value_strata([{column: value} for value in values], column)

    def metrics(self, examples: Examples, task_metrics: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the accuracy, and with three or more classes the mean F1 of the classes."""
        has_several = len(examples.label_names or ()) > 2  # noqa: PLR2004
        return tuple(task_metrics) or (("accuracy", "macro_f1") if has_several else ("accuracy",))

    def possible_metrics(self, examples: Examples) -> tuple[str, ...]:
        """Return the metrics of classes; the F1 of class 1 only of two classes."""
        is_binary = len(examples.label_names or ()) == 2  # noqa: PLR2004
        return (*self.metric_names, "f1") if is_binary else self.metric_names

    def balanced_weights(self, examples: Sequence[Example], names: Sequence[str]) -> list[float]:
        """Return `rows / (classes * rows of the class)`."""
        return balanced_weights([int(item.label) for item in examples], len(names))

    def weighted_loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the cross-entropy, weighted by class."""
        return functional.cross_entropy(logits, labels, weights)

    def loss_items(self, batch: Batch) -> float:
        """Return the sum of the rows' weights, by which the loss is a mean."""
        if self.weights is None:
            return super().loss_items(batch)
        return sum(self.weights[label] for label in cast("list[int]", batch["labels"].tolist()))

    def balanced_order(self, examples: Sequence[Example]) -> list[int]:
        """Return the indices of all rows, and behind them those of rarer classes again, in turn."""
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            rows[int(example.label)].append(index)
        most = max(map(len, rows.values()))
        repeated = [own[place % len(own)] for own in rows.values() for place in range(len(own), most)]
        return [*range(len(examples)), *repeated]

    def predict(self, learner: Learner, examples: Sequence[Example]) -> list[int]:
        """Return the class id of each example."""
        return cast(Any, self.finite_outputs(learner, examples).argmax(-1)).tolist()

    def answer(self, learner: Learner, examples: Sequence[Example]) -> list[dict[str, JsonValue]]:
        """Return the label of each example, and the probability of every class."""
        outputs = self.finite_outputs(learner, examples)
        rows: list[list[float]] = cast(Any, outputs.double().softmax(-1)).tolist()
        names = learner.label_names
        return [
            {
                "label": names[row.index(max(row))],
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for row in rows
        ]

    def evaluate(
        self, learner: Learner, examples: Sequence[Example], metrics: Sequence[str], *, is_final: bool = True
    ) -> Evaluation:
        """Return the mean cross-entropy, metrics and predictions."""
        outputs = self.outputs(learner, examples)
        labels = [int(example.label) for example in examples]
        predictions: list[int] = cast(Any, outputs.argmax(-1)).tolist()
        loss = functional.cross_entropy(outputs, torch.tensor(labels)).item()
        # A diverged model has no metric; its loss says so.
        scores = self.score(metrics, labels, predictions) if math.isfinite(loss) else {}
        if AUROC in scores:
            scores[AUROC] = auroc(labels, outputs.double().softmax(-1).numpy())
        losses = functional.cross_entropy(outputs, torch.tensor(labels), reduction="none")
        ids = [example.id for example in examples]
        return Evaluation(loss, scores, ids, labels, predictions, cast(Any, losses).tolist())

    def score(
        self, metrics: Sequence[str], labels: Sequence[Any], predictions: Sequence[Any]
    ) -> dict[str, float]:
        """Return metrics by name; without probabilities a predicted class has all of it."""
        scores = measure([name for name in metrics if name != AUROC], labels, predictions)
        if AUROC not in metrics:
            return scores
        count = max(*labels, *predictions) + 1
        area = auroc(labels, [[float(index == value) for index in range(count)] for value in predictions])
        return {name: scores.get(name, area) for name in metrics}

    def mixture_kind(self, kinds: Sequence[TaskKind]) -> TaskKind | None:
        """Return classification: one head tells the classes of all tasks apart."""
        return self if all(kind is self for kind in kinds) else None

    def mixture_metrics(self, metrics: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        """Return the accuracy, which every task has."""
        return ("accuracy",)

    def shift_label(self, example: Example, first: int) -> Example:
        """Return the example with its class id among those of all tasks."""
        return replace(example, label=int(example.label) + first)


def _choice_examples(tables: Mapping[str, Table], learned_names: Sequence[str] | None) -> Examples:
    """Return questions that all have the same choices, with these as classes."""
    names = _common_choices(tables)
    classes = names if learned_names is None else tuple(learned_names)
    ids = {index: classes.index(name) for index, name in enumerate(names) if name in classes}

    def label(row: Row) -> int:
        index = answer_index(row)
        if index not in ids:
            raise DataError(f"the answer is {not_learned([names[index]], classes)}")
        return ids[index]

    return Examples(classes, labelled_examples(tables, Columns("question", None, "answer"), label))


def _common_choices(tables: Mapping[str, Table]) -> tuple[str, ...]:
    """Return the choices that all rows share."""
    splits = read_rows(tables, lambda row, _id: choices_of(row))
    different = {choices for rows in splits.values() for choices in rows}
    if len(different) > 1:
        raise DataError(
            "the rows have different choices, which a classification head cannot tell apart; "
            "use a model that generates text, such as 'smollm2'."
        )
    return next(iter(different))


KIND = Classification()
