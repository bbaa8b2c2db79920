"""Regression: one number for each text or pair of texts."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, ClassVar, Self, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from rankfold.errors import AdapterFileError, DataError
from rankfold.models.base import LoadedModel, TaskHead
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.labels import check_published, column_format, is_measured, number_of, number_remedy
from rankfold.tasks.data.numbers import MISSING_NUMBERS, NumberFormat, is_missing, is_number_text
from rankfold.tasks.data.read import Rows, Table
from rankfold.tasks.data.splits import Stratum
from rankfold.tasks.data.table import Finding
from rankfold.tasks.kinds.kind import Evaluation, Examples, LabelHints
from rankfold.tasks.kinds.labelled import Example, LabelledText, labelled_examples, read_rows
from rankfold.tasks.kinds.learner import Features, Learner, check_finite

_SCALE, _UNIT = "scale", "unit"
_MOST_SHOWN = 40
_LIMIT = 1e150


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and standard deviation of the training labels, between which a model learns standardised numbers.

    AdamW moves an output by no more than about the learning rate at a time, so that prices in the hundreds
    of thousands would never be reached. Published tasks are learned in their own unit, as elsewhere.
    """

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def fit(cls, labels: Sequence[float]) -> Self:
        """Return the scale of labels; equal ones have a standard deviation of 1."""
        return cls(fmean(labels), pstdev(labels) or 1.0)

    @classmethod
    def of(cls, settings: Mapping[str, JsonValue]) -> Self:
        """Return the scale in the settings of a kind; that of numbers in their own unit if there is none.

        Raises:
            AdapterFileError: If it is no scale, such as after an edit of `rankfold.json`.
        """
        if _SCALE not in settings:
            return cls()
        scale = settings[_SCALE]
        if not isinstance(scale, dict) or set(scale) != {"mean", "std"}:
            raise _scale_error("", scale, "no mean and standard deviation ('mean' and 'std' alone)")
        mean, std = scale["mean"], scale["std"]
        if not _is_finite(mean):
            raise _scale_error(".mean", mean, "no finite number")
        if not _is_finite(std) or cast("float", std) <= 0:
            raise _scale_error(".std", std, "no finite number above 0")
        if not (scale := cls(cast("float", mean), cast("float", std))).is_usable:
            raise _scale_error("", settings[_SCALE], "which no labels have that could be learned")
        return scale

    @property
    def is_usable(self) -> bool:
        """Whether numbers of this scale can be told apart, and their squares written down."""
        return self.std > abs(self.mean) * sys.float_info.epsilon and max(abs(self.mean), self.std) < _LIMIT

    def standardise(self, label: float) -> float:
        """Return a label as the model learns it."""
        return (label - self.mean) / self.std

    def restore(self, outputs: Tensor) -> Tensor:
        """Return outputs of a model in the unit of the labels, in double precision."""
        return outputs.double() * self.std + self.mean


class Regression(LabelledText):
    """Numbers to predict, scored by correlation and error."""

    name: ClassVar[str] = "regression"
    baselines: ClassVar[Mapping[str, Callable[[Sequence[Any]], Any]]] = {"mean": fmean}
    setting_types: ClassVar[Mapping[str, type] | None] = {_SCALE: dict, _UNIT: str}
    metric_names: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "r2", "rmse", "mae")

    def suits(self, rows: Rows, columns: Columns, *, is_causal: bool) -> bool:
        """Return whether the labels are measurements: numbers with fractions, units or separators.

        Raises:
            DataError: If the labels are numbers that could also mean classes.
        """
        column = columns.label
        return column is not None and is_measured([row.get(column) for row in rows], column)

    def output_note(self, settings: Mapping[str, JsonValue]) -> str | None:
        """Return the scale of the outputs, where labels were standardised."""
        scale = Scale.of(settings)
        if scale == Scale():
            return None
        product = "an output" if scale.std == 1.0 else f"{scale.std:g} times an output"
        return (
            f"the model's outputs are {'centred' if scale.std == 1.0 else 'standardised'}: {product}, plus "
            f"{scale.mean:g}, is in the unit of the labels; rankfold computes it, other programs must (see "
            "rankfold.json)."
        )

    def output_scale(self, settings: Mapping[str, JsonValue]) -> tuple[float, float]:
        """Return the mean and the standard deviation of the labels, where they were standardised."""
        scale = Scale.of(settings)
        return scale.mean, scale.std

    def rescale(self, settings: Mapping[str, JsonValue], mean: float, std: float) -> dict[str, JsonValue]:
        """Return the settings with another scale, or without one where outputs are in the unit already."""
        others = {name: value for name, value in settings.items() if name != _SCALE}
        return others if (mean, std) == (0.0, 1.0) else {_SCALE: {"mean": mean, "std": std}, **others}

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return texts with numbers.

        Raises:
            DataError: If the labels are names, or a number is missing.
        """
        column = columns.label or ""
        _check_unnamed(column, next(iter(tables.values())), hints.names)
        values = [row.get(column) for table in tables.values() for row in table.rows]
        number_format = _format_of(tables, column, hints)
        splits = labelled_examples(tables, columns, lambda row: number_of(row, column, number_format))
        for split, rows in splits.items():
            check_published(split, [row.label for row in rows])
        settings = hints.learned_settings
        if settings is None:
            labels = [item.label for item in next(iter(splits.values()))]
            settings = {} if hints.is_published else _settings_of(column, labels, number_format)
        texts = [value for value in values if isinstance(value, str) and value.strip()]
        remark = number_format.explain(column, texts) if texts else ""
        return Examples(
            None, splits, (Finding("number_format", remark),) if remark else (), settings=settings
        )

    def strata(self, table: Table, columns: Columns, hints: LabelHints) -> Sequence[Stratum]:
        """Return the numbers of a scale of a few steps, such as stars; None for each of other numbers.

        Raises:
            DataError: If a label is no number.
        """
        column, tables = columns.label or "", {"train": table}
        _check_unnamed(column, table, hints.names)
        number_format = _format_of(tables, column, hints)
        _ = read_rows(tables, lambda row, _id: number_of(row, column, number_format))
        return super().strata(table, columns, hints)

    def metrics(self, examples: Examples, task_metrics: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the correlations of Pearson and Spearman, and the errors in the unit of the labels."""
        return tuple(task_metrics) or self.metric_names

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return a sequence classification model with one output."""
        return super().head(None)

    def start_head(self, base: LoadedModel, examples: Examples) -> None:
        """Let the predictions of a new head lie about the mean of the training labels.

        A head that starts at zero spends its first hundreds of updates on the mean alone: AdamW moves a bias
        by no more than the learning rate at a time. The heads of models that generate text have no bias; they
        stay as they were drawn, since other programs would not load one that was added. So does a head that
        the model's files hold.

        Args:
            base: A model with one output.
            examples: With the training split.
        """
        scale = Scale.of(examples.settings)
        for name in base.fresh_modules:
            module = base.model.get_submodule(name)
            bias = cast("torch.Tensor | None", getattr(module, "bias", None))
            if isinstance(module, nn.Linear) and module.out_features == 1 and bias is not None:
                labels = [scale.standardise(float(item.label)) for item in examples.splits["train"]]
                nn.init.constant_(bias, sum(labels) / len(labels))

    def encode(self, learner: Learner, examples: Sequence[Example], *, training: bool) -> Sequence[Features]:
        """Tokenise texts or pairs; labels are standardised."""
        rows = super().encode(learner, examples, training=training)
        scale = Scale.of(learner.settings)
        if not training or scale == Scale():
            return rows
        return [{**row, "labels": scale.standardise(row["labels"])} for row in rows]

    def predict(self, learner: Learner, examples: Sequence[Example]) -> list[float]:
        """Return the number predicted for each example, in the unit of the labels."""
        numbers = self._numbers(learner, self.outputs(learner, examples))
        return cast(Any, check_finite(numbers, [example.id for example in examples])).tolist()

    def answer(self, learner: Learner, examples: Sequence[Example]) -> list[dict[str, JsonValue]]:
        """Return the number predicted for each example, with its unit if the labels have one."""
        unit = {_UNIT: learner.settings[_UNIT]} if learner.settings.get(_UNIT) else {}
        return [{"value": value, **unit} for value in self.predict(learner, examples)]

    def evaluate(
        self, learner: Learner, examples: Sequence[Example], metrics: Sequence[str], *, is_final: bool = True
    ) -> Evaluation:
        """Return the mean squared error as in training, metrics and predictions."""
        outputs = self.outputs(learner, examples)
        scale = Scale.of(learner.settings)
        labels = [float(example.label) for example in examples]
        targets = torch.tensor([scale.standardise(label) for label in labels])
        truth = cast(Any, targets).tolist() if scale == Scale() else labels
        loss = functional.mse_loss(outputs.squeeze(-1), targets).item()
        predictions: list[float] = cast(Any, self._numbers(learner, outputs)).tolist()
        # A diverged model has no metric; its loss says so.
        scores = self.score(metrics, truth, predictions) if math.isfinite(loss) else {}
        return Evaluation(loss, scores, [example.id for example in examples], truth, predictions)

    def _numbers(self, learner: Learner, outputs: Tensor) -> Tensor:
        scale = Scale.of(learner.settings)
        values = outputs.squeeze(-1)
        return values if scale == Scale() else scale.restore(values)


def _format_of(tables: Mapping[str, Table], column: str, hints: LabelHints) -> NumberFormat:
    """Return how the numbers of a column are written.

    Raises:
        DataError: If they are written in several ways, or most labels are no numbers, with the rows.
    """
    values = [row.get(column) for table in tables.values() for row in table.rows]
    texts = [value.strip() for value in values if isinstance(value, str)]

    def quote(text: str) -> str:
        return max((table.quote(column, text) for table in tables.values()), key=len)

    number_format = column_format(values, column, hints.decimal, quote)
    if number_format is None:
        wrong = next(
            text for text in texts if not is_missing(text, MISSING_NUMBERS) and not is_number_text(text)
        )
        remedy = number_remedy(wrong)
        classes = "" if "classification" in remedy else ", learn them with --kind classification,"
        raise DataError(
            f"the labels in '{column}' are no numbers, such as {quote(wrong)}; {remedy}{classes} or name the "
            "column of the numbers with --label-column."
        )
    return number_format


def _check_unnamed(column: str, table: Table, names: Sequence[str] | None) -> None:
    """Check that the labels do not stand for names, whose numbers measure nothing."""
    class_names = table.class_names.get(column) or names
    if class_names:
        quoted = ", ".join(f"'{name}'" for name in class_names[:2])
        raise DataError(
            f"the labels in '{column}' stand for names ({quoted} and so on), which measure nothing; "
            "learn them with --kind classification."
        )


def _settings_of(column: str, labels: Sequence[float], number_format: NumberFormat) -> dict[str, JsonValue]:
    if min(labels) == max(labels):
        raise DataError(
            f"all labels in '{column}' are {labels[0]:g}; a regression needs two or more different numbers."
        )
    largest = max(labels, key=abs)
    if abs(largest) >= _LIMIT or not (scale := Scale.fit(labels)).is_usable:
        raise DataError(
            f"the labels in '{column}' go to {largest:g}, too far to be told apart or squared; give them in "
            "another unit, or without the part that all have."
        )
    unit = {_UNIT: number_format.unit} if number_format.unit else {}
    return {_SCALE: {"mean": scale.mean, "std": scale.std}, **unit}


def _is_finite(value: JsonValue) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # Also of integers that no float holds.
    return abs(value) <= sys.float_info.max


def _scale_error(field: str, value: JsonValue, fault: str) -> AdapterFileError:
    text = json.dumps(value)
    return AdapterFileError(
        f"'task.settings.scale{field}' in the adapter's 'rankfold.json' is {text[:_MOST_SHOWN]}, {fault}; "
        "restore the file from the training run."
    )


KIND = Regression()
