"""Regression: one number for each text or pair of texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar, cast

import torch
from pydantic import JsonValue
from torch import nn
from torch.nn import functional

from rankfold.errors import DataError
from rankfold.models.base import LoadedModel, TaskHead
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.labels import check_published, number_of
from rankfold.tasks.data.read import Rows, Table
from rankfold.tasks.kinds.kind import Evaluation, Examples, LabelHints
from rankfold.tasks.kinds.labelled import Example, LabelledText, labelled_examples
from rankfold.tasks.kinds.learner import Learner


class Regression(LabelledText):
    """Numbers to predict, scored by correlation."""

    name: ClassVar[str] = "regression"
    baselines: ClassVar[Mapping[str, Callable[[Sequence[Any]], Any]]] = {"mean": fmean}

    def suits(self, rows: Rows, columns: Columns, *, is_causal: bool) -> bool:
        """Return whether some labels are fractions.

        Raises:
            DataError: If labels are whole numbers written as floats, which could also mean classes.
        """
        _ = is_causal
        if columns.label is None:
            return False
        numbers = [value for row in rows if isinstance(value := row[columns.label], float)]
        if numbers and all(number.is_integer() for number in numbers):
            raise DataError(
                f"the labels in '{columns.label}' are whole numbers written as floats; "
                "say which is meant with --kind classification or --kind regression."
            )
        return bool(numbers)

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return texts with numbers."""
        _ = hints
        column = columns.label or ""
        splits = labelled_examples(tables, columns, lambda row: number_of(row, column))
        for split, rows in splits.items():
            check_published(split, [row.label for row in rows])
        return Examples(None, splits)

    def metrics(self, examples: Examples, task_metrics: Sequence[str] = ()) -> tuple[str, ...]:
        """Return Pearson's and Spearman's correlation."""
        _ = examples
        return tuple(task_metrics) or ("pearson", "spearman")

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return a sequence classification model with one output."""
        _ = label_names
        return super().head(None)

    def start_head(self, base: LoadedModel, train: Sequence[Example]) -> None:
        """Let the predictions of a new head lie about the mean of the training labels.

        A head that starts at zero spends its first hundreds of updates on the mean alone: AdamW moves a bias
        by no more than the learning rate at a time. The heads of models that generate text have no bias; they
        stay as they were drawn, since other programs would not load one that was added. So does a head that
        the model's files hold.

        Args:
            base: A model with one output.
            train: The examples of the training split.
        """
        for name in base.fresh_modules:
            module = base.model.get_submodule(name)
            bias = cast("torch.Tensor | None", getattr(module, "bias", None))
            if isinstance(module, nn.Linear) and module.out_features == 1 and bias is not None:
                nn.init.constant_(bias, sum(float(item.label) for item in train) / len(train))

    def predict(self, learner: Learner, examples: Sequence[Example]) -> list[float]:
        """Return the number predicted for each example."""
        return cast(Any, self.outputs(learner, examples).squeeze(-1)).tolist()

    def answer(self, learner: Learner, examples: Sequence[Example]) -> list[dict[str, JsonValue]]:
        """Return the number predicted for each example, in the unit of the labels."""
        return [{"value": value} for value in self.predict(learner, examples)]

    def evaluate(
        self, learner: Learner, examples: Sequence[Example], metrics: Sequence[str], *, is_final: bool = True
    ) -> Evaluation:
        """Return the mean squared error, metrics and predictions."""
        _ = is_final
        values = self.outputs(learner, examples).squeeze(-1)
        labels = torch.tensor([example.label for example in examples])
        loss = functional.mse_loss(values, labels.float()).item()
        truth, predictions = cast(Any, labels).tolist(), cast(Any, values).tolist()
        # A diverged model has no metric; its loss says so.
        scores = self.score(metrics, truth, predictions) if math.isfinite(loss) else {}
        return Evaluation(loss, scores, [example.id for example in examples], truth, predictions)


KIND = Regression()
