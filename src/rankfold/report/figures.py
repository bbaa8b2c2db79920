"""Which charts a study has, and the rows they are drawn from."""

from collections.abc import Callable, Mapping, Sequence
from math import log10
from typing import Any

import numpy as np

from rankfold.bench.record import RunRecord
from rankfold.report.charts import Axis, Mark, curves, scatter
from rankfold.report.layers import layer_figures
from rankfold.report.study import Study
from rankfold.report.table import baseline_name
from rankfold.report.words import bytes_text, metric_name, range_text, score_text

_MOST_POINTS = 200

# Where a name stands, in pixels from its point.
_ABOVE, _BELOW = -9, 15

Curve = Sequence[Mapping[str, float]]


def figures(study: Study, marks: Mapping[str, Mark]) -> list[dict[str, Any]]:
    """Return the charts of a study as the template wants them; those without data are left out."""
    looks = {row.label: marks[row.label] for row in study.rows if row.records}
    metric = metric_name(study.metric)
    line = next(((value, baseline_name(name)) for name, value in study.baselines.items()), None)
    step = Axis("step", "training step", "~s")
    points = _points(study)
    loss = _curve(study, lambda run: run.curve.train, "loss")
    held_loss = _curve(study, lambda run: run.curve.validation, "loss")
    held_metric = _curve(study, lambda run: run.curve.validation, study.metric)
    size, score = Axis("bytes", "bytes on disk (logarithmic)", "~s", "log"), Axis("value", metric)
    band = " Bands are the range over seeds." if any(len(row.records) > 1 for row in study.rows) else ""
    charts = [
        _figure("bytes", f"{metric.capitalize()} against bytes on disk",
                "Further left is smaller, further up is better; the whiskers are the intervals of the table.",
                scatter(points, looks, x=size, y=score), points, wide=True),
        _figure("loss", "Training loss", f"As the optimiser saw it.{band}",
                curves(loss, looks, x=step, y=Axis("value", "loss")), loss),
        _figure("metric", f"{metric.capitalize()} on held-out data", "During training.",
                curves(held_metric, looks, x=step, y=score, line=line), held_metric),
        _figure("held", "Loss on held-out data", "Rising again means overfitting.",
                curves(held_loss, looks, x=step, y=Axis("value", "loss")), held_loss),
    ]  # fmt: skip
    return [chart for chart in (*charts, *layer_figures(study)) if chart["rows"]]


def _figure(
    name: str, title: str, caption: str, spec: dict[str, Any], rows: Sequence[object], *, wide: bool = False
) -> dict[str, Any]:
    return {"name": name, "title": title, "caption": caption, "spec": spec, "rows": len(rows), "wide": wide}


def _points(study: Study) -> list[dict[str, object]]:
    points: list[dict[str, Any]] = []
    for row in study.rows:
        size = row.mean(lambda run: run.bytes.weights_file)
        if size and row.score:
            points.append(
                {
                    "method": row.label,
                    "bytes": round(size),
                    "value": row.score.value,
                    "low": row.score.low,
                    "high": row.score.high,
                    "score": f"{score_text(row.score)} {range_text(row.score)}".strip(),
                    "size": bytes_text(size),
                }
            )
    _place_names(points)
    return points


def _place_names(points: Sequence[dict[str, Any]]) -> None:
    """Put each name beside its point: inside the chart, and below the point where another is just above."""
    if not points:
        return
    across = [log10(point["bytes"]) for point in points]
    width = max(across) - min(across) or 1.0
    height = max(point["high"] for point in points) - min(point["low"] for point in points) or 1.0
    for index, point in enumerate(points):
        is_left = across[index] - min(across) <= width / 2
        has_one_above = any(
            other is not point
            and abs(across[index] - there) < width / 6
            and 0 <= other["value"] - point["value"] < height / 6
            for other, there in zip(points, across, strict=True)
        )
        point.update(align="left" if is_left else "right", rise=_BELOW if has_one_above else _ABOVE)


def _curve(study: Study, read: Callable[[RunRecord], Curve], field: str) -> list[dict[str, object]]:
    """Return the mean and the range over seeds at each step that all seeds of a method have."""
    rows: list[dict[str, object]] = []
    for row in study.rows:
        seeds = [
            {point["step"]: point[field] for point in read(run) if field in point} for run in row.records
        ]
        steps = [step for step in sorted(seeds[0]) if all(step in seed for seed in seeds)] if seeds else []
        for step in _thinned(steps):
            values = [seed[step] for seed in seeds]
            rows.append(
                {
                    "method": row.label,
                    "step": step,
                    "value": float(np.mean(values)),
                    "low": min(values),
                    "high": max(values),
                }
            )
    return rows


def _thinned(steps: Sequence[float]) -> list[float]:
    """Return at most `_MOST_POINTS` of the steps, evenly, the last one always."""
    if len(steps) <= _MOST_POINTS:
        return list(steps)
    picked = np.unique(np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int))
    return [steps[index] for index in picked]
