"""Remarks on a result: signs that a run has learned nothing, to be read beside its metrics."""

import json
from collections.abc import Iterator

from rankfold.runs.record import RunRecord
from rankfold.tasks.metrics import is_smaller_better

_FEWEST_ROWS = 5


def remarks(record: RunRecord) -> list[str]:
    """Return what is suspicious about a finished run: one prediction for every row, or no gain on a baseline.

    Args:
        record: The run; a failed one has no remarks.
    """
    if record.status == "failed":
        return []
    return [*_constant(record), *_no_gain(record)]


def _constant(record: RunRecord) -> Iterator[str]:
    different = {json.dumps(item.prediction) for item in record.predictions}
    count = len(record.predictions)
    if len(different) != 1 or count < _FEWEST_ROWS:
        return
    prediction = record.predictions[0].prediction
    names = record.task.label_names or ()
    name = str(prediction)
    if isinstance(prediction, int) and 0 <= prediction < len(names):
        name = f"'{names[prediction]}'"
    yield (
        f"the model predicts {name} for each of the {count:,} held-out rows; train for more steps or with a "
        "higher learning rate."
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
                "was learned that counts; train for more steps, or look at the data."
            )
