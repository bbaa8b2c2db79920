"""The page of one run: result, curves, mistakes with their texts, cost, and the command that repeats it."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from pydantic import JsonValue

from rankfold.bench.statistics.comparison import Interval, metric_intervals
from rankfold.report.chart_style import Figure
from rankfold.report.format import (
    bytes_text,
    capital,
    metric_name,
    range_text,
    score_text,
    seconds_text,
)
from rankfold.report.pictures import run_grid
from rankfold.report.run_charts import (
    MOST_CLASSES,
    confusion_figure,
    curve_figures,
    length_figure,
    number_figures,
)
from rankfold.report.sections import run_facts
from rankfold.report.tables import baseline_name
from rankfold.report.write import render
from rankfold.runs.examples import HeldOutExample
from rankfold.runs.record import RunRecord
from rankfold.runs.remarks import class_figures, remarks

_CONFUSIONS = 10


def run_page(record: RunRecord, examples: Sequence[HeldOutExample], *, version: str) -> str:
    """Return the page of one run as one HTML text that loads nothing.

    Args:
        record: The run.
        examples: Its held-out examples with texts, if it has kept any.
        version: The version of rankfold that makes the page.
    """
    title = f"{record.method.name} on {record.task.name}"
    groups = {"curves": curve_figures(record), "rows": _row_figures(record), "data": _length_figures(record)}
    has_charts = any(groups.values())
    page = {
        "title": title,
        "version": version,
        "facts": _facts(record),
        "failed": record.error if record.status == "failed" else None,
        "headline": headline(record),
        "scores": _scores(record),
        "scores_note": _scores_note(record),
        "remarks": [capital(remark) for remark in remarks(record)],
        "figures": groups,
        "classes": _classes(record),
        "confusions": _confusions(record),
        "mistakes": _table([item for item in examples if item.role == "mistake"]),
        "samples": _table([item for item in examples if item.role == "sample" and not item.pictures]),
        "pictures": run_grid(examples),
        "is_numeric": bool(_number_pairs(record)),
        "findings": [capital(finding) for finding in record.findings],
        "cost": _cost(record),
        "run": run_facts(record.method.name, record, record.task.metric),
        "has_charts": has_charts,
    }
    return render("run.html.j2", page, has_charts=has_charts)


# The result


def _facts(record: RunRecord) -> list[str]:
    created = datetime.fromisoformat(record.created).astimezone(UTC)
    return [
        f"model {record.model.name}",
        f"seed {record.training.seed}",
        f"{created:%d %B %Y, %H:%M} UTC".lstrip("0"),
        record.hardware.gpu or record.hardware.cpu,
    ]


def headline(record: RunRecord) -> str:
    """Return the result in a sentence: the metric with its interval, the rows, and the baseline."""
    if record.status == "failed":
        return "The run failed."
    name = record.task.metric
    if name not in record.metrics:
        return ""
    interval = _interval(record, name)
    rows = record.data.rows.get("validation")
    value = f"{metric_name(name)} {score_text(interval) if interval else _number(record.metrics[name])}"
    bounds = range_text(interval).strip("[]").replace(", ", " to ")
    doubt = f" (95 % interval {bounds})" if bounds else ""
    place = f" on {rows:,} held-out rows" if rows else ""
    baselines = [f"{baseline_name(key)} {_number(score)}" for key, score in record.baselines.items()]
    against = f"; {', '.join(baselines)}" if baselines else ""
    return f"{capital(value)}{doubt}{place}{against}."


def _scores(record: RunRecord) -> list[dict[str, Any]]:
    """Return each metric with its interval, and the baselines under the one that they have."""
    rows: list[dict[str, Any]] = []
    for name, value in record.metrics.items():
        interval = _interval(record, name)
        rows.append({"name": metric_name(name), "kind": "", **_score_cells(value, interval)})
        if name == record.task.metric:
            rows += [
                {"name": baseline_name(key), "kind": "baseline", **_score_cells(score, None)}
                for key, score in record.baselines.items()
            ]
    return rows


def _score_cells(value: float, interval: Interval | None) -> dict[str, str]:
    return {"value": _number(value), "range": range_text(interval)}


def _scores_note(record: RunRecord) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in record.data.rows.items())
    scoring = f" Answers were scored by {record.task.scoring}." if record.task.scoring else ""
    return (
        f"Rows: {counts}. Intervals say what other held-out rows might have shown; "
        f"another seed may differ by more.{scoring}"
    )


def _interval(record: RunRecord, name: str) -> Interval | None:
    """Return the interval of a metric that is computed from labels and predictions; None for others."""
    metrics = {name: record.metrics[name]} if name in record.metrics else {}
    return metric_intervals(record.predictions, metrics, seed=record.training.seed).get(name)


def _number(value: float) -> str:
    """Return a score with four digits; errors may be in the hundreds of thousands."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR2004


# Rows


def _row_figures(record: RunRecord) -> list[Figure]:
    if names := _class_names(record):
        matrix = confusion_figure(_class_pairs(record, names), names)
        return [matrix] if matrix else []
    return number_figures(_number_pairs(record), _unit(record))


def _class_names(record: RunRecord) -> tuple[str, ...]:
    """Return the class names if each row has one class; empty for other kinds of tasks."""
    names = record.task.label_names or ()
    values = (value for item in record.predictions for value in (item.label, item.prediction))
    is_single = all(type(value) is int and 0 <= value < len(names) for value in values)
    return names if is_single else ()


def _class_pairs(record: RunRecord, names: Sequence[str]) -> list[tuple[str, str]]:
    return [(names[cast(int, item.label)], names[cast(int, item.prediction)]) for item in record.predictions]


def _number_pairs(record: RunRecord) -> list[tuple[float, float]]:
    """Return true and predicted numbers; nothing if predictions are classes, indices, texts or losses."""
    if record.task.metric.endswith("_loss"):
        return []
    pairs = [(item.label, item.prediction) for item in record.predictions]
    if record.task.label_names or not any(isinstance(guess, float) for _, guess in pairs):
        return []
    if not all(isinstance(value, int | float) for pair in pairs for value in pair):
        return []
    return [(float(cast(float, truth)), float(cast(float, guess))) for truth, guess in pairs]


def _unit(record: RunRecord) -> str:
    unit = record.task.settings.get("unit")
    return unit if isinstance(unit, str) else ""


def _classes(record: RunRecord) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and rows of each class, the most frequent first."""
    rows: list[dict[str, Any]] = []
    for item in class_figures(record.predictions, record.task.label_names):
        ratios = [
            "–" if value is None else f"{value:.3f}" for value in (item.precision, item.recall, item.f1)
        ]
        rows.append({"name": item.name, "cells": [*ratios, f"{item.rows:,}", f"{item.predicted:,}"]})
    return rows


def _confusions(record: RunRecord) -> list[dict[str, Any]]:
    """Return the pairs of classes that are confused most often, where a matrix is too large to read."""
    names = _class_names(record)
    if len(names) <= MOST_CLASSES // 2:
        return []
    wrong = Counter(pair for pair in _class_pairs(record, names) if pair[0] != pair[1])
    return [
        {"true": true, "predicted": predicted, "rows": f"{count:,}"}
        for (true, predicted), count in wrong.most_common(_CONFUSIONS)
    ]


def _table(examples: Sequence[HeldOutExample]) -> list[dict[str, Any]]:
    names = {name for item in examples for name in item.texts}
    return [
        {
            "id": str(item.id),
            "texts": [(name if len(names) > 1 else "", text) for name, text in item.texts.items()],
            "label": _value_text(item.label),
            "prediction": _value_text(item.prediction),
            "loss": "" if item.loss is None else f"{item.loss:.3g}",
        }
        for item in examples
    ]


def _value_text(value: JsonValue) -> str:
    match value:
        case None:
            return "–"
        case float():
            return _number(value)
        case list():
            return ", ".join(_value_text(item) for item in value) or "none"
        case _:
            return str(value)


# Data and cost


def _length_figures(record: RunRecord) -> list[Figure]:
    lengths = record.lengths
    if lengths is None:
        return []
    figure = length_figure(lengths.edges, lengths.counts, record.training.max_length, lengths.cut)
    return [figure] if figure else []


def _cost(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return rows of speed, memory and sizes: name, value and parts."""
    if record.status == "failed":
        return []
    seconds, sizes, parameters = record.seconds, record.bytes, record.parameters
    step = seconds.step_median
    rows = f"{record.training.batch_size / step:,.1f} rows a second" if step else ""
    details = f"{seconds_text(seconds.train)} training, {seconds_text(seconds.evaluate)} evaluating"
    return [
        ("time", seconds_text(seconds.total), details),
        ("a step", f"{step * 1000:,.0f} ms" if step else "–", rows),
        ("peak memory", bytes_text(record.peak_memory_bytes) if record.peak_memory_bytes else "–", ""),
        (
            "weights file",
            bytes_text(sizes.weights_file),
            f"{bytes_text(sizes.learned)} of it learned numbers",
        ),
        ("trained numbers", f"{parameters.trainable:,}", f"and {parameters.head:,} in the head"),
    ]
