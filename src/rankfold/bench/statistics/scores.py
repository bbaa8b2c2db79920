"""The metric of runs with its doubt, over the examples that all of them were measured on."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rankfold.bench.statistics.measures import MEASURES
from rankfold.bench.statistics.stats import Interval, Scores, metric_interval
from rankfold.runs.record import RunRecord
from rankfold.tasks.metrics import ANSWER_LOSS

# Every other metric is the larger the better.
SMALLER_IS_BETTER = frozenset({ANSWER_LOSS})


def goodness(record: RunRecord) -> float:
    """Return the metric of a run so that more is better; -inf for a run that failed."""
    if record.status == "failed":
        return -math.inf
    value = record.metrics[record.task.metric]
    return -value if record.task.metric in SMALLER_IS_BETTER else value


def shared_examples(records: Sequence[RunRecord]) -> list[int | str]:
    """Return the ids of the examples that every run was measured on, in the order of the first."""
    if not records:
        return []
    others = [{item.id for item in record.predictions} for record in records[1:]]
    first = dict.fromkeys(item.id for item in records[0].predictions)
    return [name for name in first if all(name in other for other in others)]


def baselines_of(records: Sequence[RunRecord]) -> Mapping[str, float]:
    """Return what needs no training, by its name: that of the run measured on the fewest examples.

    What all runs share are the examples of that one, if a run that was measured on more began with the same.
    """
    return min(records, key=lambda record: len(record.predictions)).baselines if records else {}


def scores_of(records: Sequence[RunRecord], examples: Sequence[int | str]) -> Scores:
    """Return what runs of one method predicted, one row per seed."""
    found = [{item.id: item for item in record.predictions} for record in records]
    labels = np.array([found[0][name].label for name in examples])
    predictions = np.array([[run[name].prediction for name in examples] for run in found])
    return Scores(labels, predictions, tuple(record.training.seed for record in records))


def mean_score(records: Sequence[RunRecord], metric: str, examples: Sequence[int | str]) -> Interval | None:
    """Return the mean over the runs of one method; None if there is no run."""
    if not records:
        return None
    if metric in MEASURES and examples:
        return metric_interval(scores_of(records, examples), metric)
    value = float(np.mean([record.metrics[metric] for record in records]))
    return Interval(value, value, value)
