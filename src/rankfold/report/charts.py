"""Which charts a study has, and the curves that they are drawn from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rankfold.report.chart_style import Axis, Mark, Spec, axis_of, by, chart, encoded, figure, level
from rankfold.report.format import capital, metric_name
from rankfold.report.rows import Row
from rankfold.report.study import Study
from rankfold.report.sweeps import knob_figures
from rankfold.report.tables import baseline_name
from rankfold.report.trade_off import trade_offs
from rankfold.runs.record import ReducerPart, RunRecord

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


# With more methods than these their ranges over seeds would only hide each other.
MOST_BANDS = 8


def curves(
    rows: Sequence[Mapping[str, object]],
    marks: Mapping[str, Mark],
    *,
    x: Axis,
    y: Axis,
    line: tuple[float, str] | None = None,
) -> Spec:
    """Return one line per method, with the range over its seeds as a band and markers where points are few.

    Args:
        rows: Rows with `method`, the fields of `x` and `y`, and `low` and `high` over seeds.
        marks: The look of each method.
        x: Horizontal quantity.
        y: Vertical quantity.
        line: A horizontal line for comparison and its name.
    """
    horizontal, vertical = encoded(x), encoded(y)
    tooltip = [
        {"field": "method"},
        {"field": x.field, "title": x.title, "type": "quantitative"},
        {"field": y.field, "title": y.title, "type": "quantitative", "format": ".4f"},
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "area", "opacity": 0.14},
            "encoding": {"x": horizontal, "y": {**vertical, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {"x": horizontal, "y": vertical, "strokeDash": by("dash", marks)},
        },
        {
            # Large and invisible: something to point at for the exact values.
            "mark": {"type": "point", "size": 160, "opacity": 0},
            "encoding": {"x": horizontal, "y": vertical, "tooltip": tooltip},
        },
    ]
    if len(marks) > MOST_BANDS:
        del layers[0]
    if len(rows) <= 12 * max(len(marks), 1):
        layers.append(
            {
                "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                "encoding": {
                    "x": horizontal,
                    "y": vertical,
                    "shape": by("shape", marks),
                    "tooltip": tooltip,
                },
            }
        )
    for layer in layers:
        layer["encoding"]["color"] = by("colour", marks)
    if line:
        layers.append(level(*line))
    return chart({"layer": layers, "data": {"values": list(rows)}}, height=280)


def heat_map(
    cells: Sequence[Mapping[str, object]],
    layers: Sequence[str],
    *,
    x: Axis,
    colour: Axis,
    is_signed: bool,
) -> Spec:
    """Return layers as rows, the output's on top, and spans of steps as columns, by colour.

    Args:
        cells: Rows with `method`, `layer`, the field of `x` and `from`, where its span begins, `importance`
            and `trained`.
        layers: From the input to the output.
        x: Horizontal quantity.
        colour: What is shown.
        is_signed: Whether 0 is a middle, with a colour for each side, or the least.
    """
    most = max((abs(float(str(cell[colour.field]))) for cell in cells), default=0.0) or 1.0
    scale: Spec = (
        {"scheme": "blueorange", "domain": [-most, most]}
        if is_signed
        else {"scheme": "blues", "domain": [0, 1]}
    )
    begin = {"field": "from", "type": "quantitative", "scale": {"nice": False}, "axis": axis_of(x)}
    body: Spec = {
        "mark": {"type": "rect"},
        "encoding": {
            "x": begin,
            "x2": {"field": x.field},
            "y": {
                "field": "layer",
                "type": "nominal",
                "sort": list(reversed(layers)),
                "title": None,
                "axis": {"ticks": False, "domain": False},
            },
            "color": {
                "field": colour.field,
                "type": "quantitative",
                "scale": scale,
                "legend": {
                    "title": colour.title,
                    "titleColor": "var(--soft)",
                    "labelColor": "var(--soft)",
                    "titleFontWeight": "normal",
                },
            },
            "tooltip": [
                {"field": "layer"},
                {"field": x.field, "title": x.title},
                {"field": "importance", "format": ".3f"},
                {"field": "trained", "title": "share of steps", "format": ".0%"},
            ],
        },
        "data": {"values": list(cells)},
    }
    return chart(body, height=max(120, 20 * len(layers)))


_MOST_COLUMNS = 60

_IMPORTANCE = (
    "Importance of the layers",
    Axis("importance", "importance"),
    "what the probes found; the higher, the more often a layer trains.",
)
_TRAINED = (
    "Layers that trained",
    Axis("trained", "share of steps"),
    "the share of the steps in which each layer trained.",
)

Cells = list[dict[str, Any]]


def layer_figures(study: Study) -> list[dict[str, Any]]:
    """Return the heat maps of a study as the template wants them; none for methods without a Reducer."""
    found = ((row, _parts(row)) for row in study.rows)
    return [_figure(number, row, parts) for number, (row, parts) in enumerate(found, start=1) if parts]


def _parts(row: Row) -> list[ReducerPart]:
    """Return what the Reducers of a method's seeds recorded, if all of them recorded something."""
    parts = [run.reducer for run in row.records if run.reducer is not None and run.reducer.history]
    return parts if len(parts) == len(row.records) else []


def _figure(number: int, row: Row, parts: Sequence[ReducerPart]) -> dict[str, Any]:
    cells = layer_cells(row.label, parts)
    is_measured = any(cell["importance"] for cell in cells)
    title, colour, meaning = _IMPORTANCE if is_measured else _TRAINED
    mean = f" Mean of {len(parts)} seeds." if len(parts) > 1 else ""
    step = Axis("step", "training step", "~s")
    return figure(
        f"layers-{number}",
        title,
        f"{row.label}: {meaning}{mean}",
        heat_map(cells, parts[0].layers, x=step, colour=colour, is_signed=is_measured),
        width="wide",
    )


def layer_cells(label: str, parts: Sequence[ReducerPart]) -> Cells:
    """Return one cell for each layer and span of steps, the mean over seeds.

    Args:
        label: The method's name.
        parts: What its seeds recorded; of the steps, those that all of them have are shown.
    """
    seeds = [{point.step: point for point in part.history} for part in parts]
    steps = [step for step in seeds[0] if all(step in seed for seed in seeds)]
    picked = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_COLUMNS)).round().astype(int))
    cells: Cells = []
    before, counts = 0, np.zeros(len(parts[0].layers))
    for step in [steps[int(index)] for index in picked]:
        points = [seed[step] for seed in seeds]
        importance = np.mean([point.importance for point in points], axis=0)
        trained = np.mean([point.trained for point in points], axis=0)
        shares = (trained - counts) / (step - before)
        cells += [
            {
                "method": label,
                "layer": layer,
                "from": before,
                "step": step,
                "importance": round(float(value), 4),
                "trained": round(float(share), 4),
            }
            for layer, value, share in zip(parts[0].layers, importance, shares, strict=True)
        ]
        before, counts = step, trained
    return cells
