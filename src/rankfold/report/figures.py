"""Which charts a study has, and the curves that they are drawn from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rankfold.report.chart_parts import Axis, Mark, figure
from rankfold.report.charts import MOST_BANDS, curves
from rankfold.report.knobs import knob_figures
from rankfold.report.layers import layer_figures
from rankfold.report.study import Study
from rankfold.report.table import baseline_name
from rankfold.report.trade_off import trade_offs
from rankfold.report.words import capital, metric_name
from rankfold.runs.record import RunRecord

# So that a page of many methods stays small: points of a chart, and of each of its curves.
_MOST_IN_CHART, _MOST_POINTS, _FEWEST_POINTS = 3000, 200, 24

Curve = Sequence[Mapping[str, float]]


def figures(study: Study, marks: Mapping[str, Mark]) -> list[dict[str, Any]]:
    """Return the charts of a study as the template wants them; those without data are left out."""
    looks = {row.label: marks[row.label] for row in study.rows if row.records}
    metric = metric_name(study.metric)
    line = next(((value, baseline_name(name)) for name, value in study.baselines.items()), None)
    step, score, loss = Axis("step", "training step", "~s"), Axis("value", metric), Axis("value", "loss")
    trained = _curve(study, lambda run: run.curve.train, "loss")
    held_loss = _curve(study, lambda run: run.curve.validation, "loss")
    held_metric = _curve(study, lambda run: run.curve.validation, study.metric)
    has_bands = len(looks) <= MOST_BANDS and any(len(row.records) > 1 for row in study.rows)
    band = " Bands are the range over seeds." if has_bands else ""
    training = [
        figure("loss", "Training loss", f"As the optimiser saw it.{band}",
               curves(trained, looks, x=step, y=loss)),
        figure("metric", f"{capital(metric)} on held-out data", "During training.",
               curves(held_metric, looks, x=step, y=score, line=line)),
        figure("held", "Loss on held-out data", "Rising again means overfitting.",
               curves(held_loss, looks, x=step, y=loss)),
    ]  # fmt: skip
    charts = [
        *trade_offs(study, looks),
        *knob_figures(study),
        *_side_by_side(training),
        *layer_figures(study),
    ]
    return [chart for chart in charts if chart["rows"]]


def _side_by_side(charts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the charts that have data, which fill a line together."""
    shown = [chart for chart in charts if chart["rows"]]
    width = {1: "wide", 2: "half"}.get(len(shown), "third")
    return [{**chart, "width": width} for chart in shown]


def _curve(study: Study, read: Callable[[RunRecord], Curve], field: str) -> list[dict[str, object]]:
    """Return the mean and the range over seeds at each step that all seeds of a method have."""
    rows: list[dict[str, object]] = []
    most = min(_MOST_POINTS, max(_FEWEST_POINTS, _MOST_IN_CHART // len(study.rows)))
    for row in study.rows:
        seeds = [
            {point["step"]: point[field] for point in read(run) if field in point} for run in row.records
        ]
        steps = [step for step in sorted(seeds[0]) if all(step in seed for seed in seeds)] if seeds else []
        # What was measured once is in the table; a curve takes two points.
        for step in _thinned(steps, most) if len(steps) > 1 else ():
            values = [seed[step] for seed in seeds]
            rows.append(
                {
                    "method": row.label,
                    "step": step,
                    "value": _short(float(np.mean(values))),
                    "low": _short(min(values)),
                    "high": _short(max(values)),
                }
            )
    return rows


def _thinned(steps: Sequence[float], most: int) -> list[float]:
    """Return at most so many of the steps, evenly, the last one always."""
    if len(steps) <= most:
        return list(steps)
    picked = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))
    return [steps[index] for index in picked]


def _short(value: float) -> float:
    """Return a value as it can be seen in a chart; the whole number would be most of the page."""
    return float(f"{value:.5g}")
