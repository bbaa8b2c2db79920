"""Remarks on a result: signs that a run has learned nothing, to be read beside its metrics."""

import json
from collections.abc import Iterator, Sequence
from typing import cast

from pydantic import JsonValue

from rankfold.runs.record import Prediction, RunRecord
from rankfold.tasks.metrics import ClassFigures, is_smaller_better, per_class

_FEWEST_ROWS = 5


def remarks(record: RunRecord) -> list[str]:
    """Return warnings about a finished run: one prediction for every row, or no gain on a baseline.

    Args:
        record: The run; a failed one has no remarks.
    """
    if record.status == "failed":
        return []
    return [*_constant(record), *_no_gain(record)]


def class_figures(predictions: Sequence[Prediction], label_names: Sequence[str] | None) -> list[ClassFigures]:
    """Return the figures of each class; none for predictions that are not of classes.

    Args:
        predictions: Of a run or an evaluation.
        label_names: The classes in the order of their ids, if there are any.
    """
    known_names = set(label_names or ())

    def is_of_class(value: JsonValue) -> bool:
        if isinstance(value, list):
            items = cast("list[object]", value)
            return all(isinstance(item, str) and item in known_names for item in items) and (
                len(set(map(str, items))) == len(items)
            )
        return type(value) is int and 0 <= value < len(known_names)

    values = [value for item in predictions for value in (item.label, item.prediction)]
    if not values or not label_names or not all(map(is_of_class, values)):
        return []
    return per_class(
        [item.label for item in predictions], [item.prediction for item in predictions], label_names
    )


def _constant(record: RunRecord) -> Iterator[str]:
    different = {json.dumps(item.prediction) for item in record.predictions}
    count = len(record.predictions)
    if len(different) != 1 or count < _FEWEST_ROWS:
        return
    prediction = record.predictions[0].prediction
    names = record.task.label_names or ()
    name = "no label" if prediction == [] else str(prediction)
    if isinstance(prediction, int) and 0 <= prediction < len(names):
        name = f"'{names[prediction]}'"
    yield (
        f"the model predicts {name} for each of the {count:,} held-out rows; give more --steps or --epochs, "
        "or another --learning-rate: too large a one ends there as well as too small a one."
    )


def _no_gain(record: RunRecord) -> Iterator[str]:
    metric = record.task.metric
    value = record.metrics.get(metric)
    for name, baseline in record.baselines.items():
        if value is None:
            return
        is_better = value < baseline if is_smaller_better(metric) else value > baseline
        if not is_better:
            other = "the untrained model" if name == "untrained" else f"a model that never looks ({name})"
            yield (
                f"{metric} is {value:.4g}, and {other} has {baseline:.4g}: nothing "
                "was learned that counts; give more --steps or --epochs, another --learning-rate, or look at "
                "the data with `rankfold data show`."
            )
