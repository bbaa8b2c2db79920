"""Charts of a study: curves over the training steps, heat maps of layers, and the list of all its charts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import altair as alt
import numpy as np

from rankfold.report.chart_style import (
    SOFT,
    Axis,
    Figure,
    Rows,
    Spec,
    Style,
    level_layers,
    page_spec,
    style_encodings,
)
from rankfold.report.format import capital, metric_name
from rankfold.report.results import Result
from rankfold.report.selection import is_chosen
from rankfold.report.study import Study
from rankfold.report.sweeps import sweep_figures
from rankfold.report.tables import baseline_name
from rankfold.report.trade_off import trade_off_figures
from rankfold.runs.record import ReducerInfo, RunRecord

# Limits that keep a page of many methods small: points of a chart, and of each of its curves.
_MOST_IN_CHART, _MOST_POINTS, _FEWEST_POINTS = 3000, 200, 24

# With more methods than these their ranges over seeds would only hide each other.
_MOST_BANDS = 8

# A curve of few points shows each of them.
_FEW_POINTS = 12

_MOST_SPANS = 60

_STEP = Axis("step", "training step", "~s")

Curve = Sequence[Mapping[str, float]]


def study_figures(study: Study, styles: Mapping[str, Style]) -> list[Figure]:
    """Return the charts of a study; those without data are left out.

    Args:
        study: The results.
        styles: The style of every result, by its label.
    """
    result_styles = {result.label: styles[result.label] for result in study.results if result.records}
    figures = [
        *trade_off_figures(study, result_styles),
        *sweep_figures(study),
        *_side_by_side(_training_figures(study, result_styles)),
        *layer_figures(study),
        *tuning_figures(study, result_styles),
    ]
    return [figure for figure in figures if figure.rows]


def _training_figures(study: Study, styles: Mapping[str, Style]) -> Iterator[Figure]:
    """Yield the charts over training steps: training loss, metric and loss on held-out data."""
    metric = metric_name(study.metric)
    baseline = next(((value, baseline_name(name)) for name, value in study.baselines.items()), None)
    has_bands = len(styles) <= _MOST_BANDS and any(len(result.records) > 1 for result in study.results)
    bands = " Bands are the range over seeds." if has_bands else ""
    loss = Axis("value", "loss")
    yield Figure(
        "loss",
        "Training loss",
        f"The loss of each training batch.{bands}",
        curve_chart(_curve_rows(study, lambda run: run.curve.train, "loss"), styles, y=loss),
    )
    rows = _curve_rows(study, lambda run: run.curve.validation, study.metric)
    yield Figure(
        "metric",
        f"{capital(metric)} on held-out data",
        "Measured during training.",
        curve_chart(rows, styles, y=Axis("value", metric), baseline=baseline),
    )
    yield Figure(
        "held",
        "Loss on held-out data",
        "Where it rises again, the model overfits.",
        curve_chart(_curve_rows(study, lambda run: run.curve.validation, "loss"), styles, y=loss),
    )


def _side_by_side(figures: Iterator[Figure]) -> list[Figure]:
    """Return the charts that have data, with widths that fill one line of the page."""
    nonempty = [figure for figure in figures if figure.rows]
    widths = {1: "wide", 2: "half"}
    return [replace(figure, width=widths.get(len(nonempty), "third")) for figure in nonempty]


def _curve_rows(study: Study, read: Callable[[RunRecord], Curve], field: str) -> list[dict[str, Any]]:
    """Return the mean and the range over seeds at each step that all seeds of a method have."""
    rows: list[dict[str, Any]] = []
    most = min(_MOST_POINTS, max(_FEWEST_POINTS, _MOST_IN_CHART // len(study.results)))
    for result in study.results:
        seeds = [
            {point["step"]: point[field] for point in read(run) if field in point} for run in result.records
        ]
        steps = _shared_steps(seeds)
        # A single measurement is in the table; a curve takes two points.
        for step in _evenly(steps, most) if len(steps) > 1 else ():
            values = [seed[step] for seed in seeds]
            statistics = {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
            rounded_values = {name: _significant(value) for name, value in statistics.items()}
            rows.append({"method": result.label, "step": step, **rounded_values})
    return rows


def _shared_steps(seeds: Sequence[Mapping[Any, object]]) -> list[Any]:
    return [step for step in sorted(seeds[0]) if all(step in seed for seed in seeds)] if seeds else []


def _evenly(steps: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the steps, evenly spread, always with the last one."""
    indices = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), most)).round().astype(int))
    return [steps[index] for index in indices]


def _significant(value: float) -> float:
    """Return a value with five digits; more cannot be seen, and would be most of the page."""
    return float(f"{value:.5g}")


def curve_chart(
    rows: Rows, styles: Mapping[str, Style], *, y: Axis, baseline: tuple[float, str] | None = None
) -> Spec:
    """Return one line per method, its range over seeds as a band, and markers where points are few.

    Args:
        rows: Rows with `method`, `step`, the field of `y`, and `low` and `high` over seeds.
        styles: The style of each method.
        y: Vertical quantity.
        baseline: A horizontal line for comparison and its name.
    """
    colour = style_encodings(styles, "color")
    base = alt.Chart().encode(x=_STEP.x(), y=y.y(), **colour)
    tooltip = [
        alt.Tooltip("method", type="nominal"),
        alt.Tooltip(_STEP.field, type="quantitative", title=_STEP.title),
        alt.Tooltip(y.field, type="quantitative", title=y.title, format=".4f"),
    ]
    layers = [
        base.mark_line(strokeWidth=1.8).encode(**style_encodings(styles, "strokeDash")),
        # Large and invisible: something to point at for the exact values.
        base.mark_point(size=160, opacity=0).encode(tooltip=tooltip),
    ]
    if len(styles) <= _MOST_BANDS:
        band = alt.Chart().mark_area(opacity=0.14)
        layers.insert(0, band.encode(x=_STEP.x(), y=y.y("low"), y2="high", **colour))
    if len(rows) <= _FEW_POINTS * max(len(styles), 1):
        points = base.mark_point(filled=True, size=50, opacity=1)
        layers.append(points.encode(tooltip=tooltip, **style_encodings(styles, "shape")))
    return page_spec([*layers, *(level_layers(*baseline) if baseline else ())], rows, height=280)


def layer_figures(study: Study) -> list[Figure]:
    """Return a heat map of steps by layers for each result whose runs had a Reducer."""
    histories = ((number, result, _reducers(result)) for number, result in enumerate(study.results, start=1))
    return [_layer_figure(number, result, parts) for number, result, parts in histories if parts]


def _reducers(result: Result) -> list[ReducerInfo]:
    """Return the histories of the Reducers of all seeds; none unless every seed has one."""
    parts = [run.reducer for run in result.records if run.reducer is not None and run.reducer.history]
    return parts if len(parts) == len(result.records) else []


def _layer_figure(number: int, result: Result, parts: Sequence[ReducerInfo]) -> Figure:
    cells = layer_cells(result.label, parts)
    has_probes = any(cell["importance"] for cell in cells)
    if has_probes:
        title, colour = "Importance of the layers", Axis("importance", "importance")
        meaning = "as the probes measured it; the higher, the more often a layer trains."
    else:
        title, colour = "Layers that trained", Axis("trained", "share of steps")
        meaning = "the share of the steps in which each layer trained."
    mean = f" Mean of {len(parts)} seeds." if len(parts) > 1 else ""
    spec = heat_map(cells, parts[0].layers, colour=colour, is_signed=has_probes)
    return Figure(f"layers-{number}", title, f"{result.label}: {meaning}{mean}", spec, "wide")


def layer_cells(label: str, parts: Sequence[ReducerInfo]) -> list[dict[str, Any]]:
    """Return one cell for each layer and span of steps, the mean over seeds.

    Args:
        label: The method's name.
        parts: The Reducers of its seeds; the steps that all of them recorded are shown.
    """
    seeds = [{point.step: point for point in part.history} for part in parts]
    cells: list[dict[str, Any]] = []
    start, counts = 0, np.zeros(len(parts[0].layers))
    for step in _evenly(_shared_steps(seeds), _MOST_SPANS):
        points = [seed[step] for seed in seeds]
        importance = np.mean([point.importance for point in points], axis=0)
        trained = np.mean([point.trained for point in points], axis=0)
        shares = (trained - counts) / (step - start)
        cells += [
            {
                "method": label,
                "layer": layer,
                "from": start,
                "step": step,
                "importance": round(float(value), 4),
                "trained": round(float(share), 4),
            }
            for layer, value, share in zip(parts[0].layers, importance, shares, strict=True)
        ]
        start, counts = step, trained
    return cells


def heat_map(cells: Rows, layers: Sequence[str], *, colour: Axis, is_signed: bool) -> Spec:
    """Return layers as rows, the output's on top, and spans of steps as columns, by colour.

    Args:
        cells: Rows as `layer_cells` makes them.
        layers: From the input to the output.
        colour: The quantity that is shown.
        is_signed: Whether the colours diverge from a middle at 0, or rise from 0 to 1.
    """
    most = max((abs(float(cell[colour.field])) for cell in cells), default=0.0) or 1.0
    scale = (
        alt.Scale(scheme="blueorange", domain=[-most, most])
        if is_signed
        else alt.Scale(scheme="blues", domain=[0, 1])
    )
    legend = alt.Legend(
        title=colour.title, titleColor=SOFT, labelColor=SOFT, titleFontWeight="normal", orient="right"
    )
    chart = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X("from", type="quantitative", scale=alt.Scale(nice=False), axis=_STEP.ruler()),
            x2=_STEP.field,
            y=alt.Y(
                "layer",
                type="nominal",
                sort=list(reversed(layers)),
                title=None,
                axis=alt.Axis(ticks=False, domain=False),
            ),
            color=alt.Color(colour.field, type="quantitative", scale=scale, legend=legend),
            tooltip=[
                alt.Tooltip("layer", type="nominal"),
                alt.Tooltip(_STEP.field, type="quantitative", title=_STEP.title),
                alt.Tooltip("importance", type="quantitative", format=".3f"),
                alt.Tooltip("trained", type="quantitative", title="share of steps", format=".0%"),
            ],
        )
    )
    return page_spec([chart], cells, height=max(120, 20 * len(layers)))


def tuning_figures(study: Study, styles: Mapping[str, Style]) -> list[Figure]:
    """Return a chart of the score against each tuned number, with the chosen ones marked."""
    names = dict.fromkeys(name for method in study.tuned for values, _ in method.points() for name in values)
    return [_tuning_figure(study, name, styles) for name in names]


def _is_above_zero(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def _tuning_figure(study: Study, name: str, styles: Mapping[str, Style]) -> Figure:
    rows = [
        {"method": method.label, "setting": values[name], "value": _significant(score), "chosen": chosen}
        for method in study.tuned
        if method.label in styles
        for values, score in method.points()
        if score is not None and _is_above_zero(values.get(name))
        for chosen in [is_chosen(method, values)]
    ]
    metric, title = metric_name(study.metric), name.replace("_", " ")
    x, y = Axis("setting", f"{title} (logarithmic)", ".2~e", "log"), Axis("value", metric)
    base = alt.Chart().encode(x=x.x(), y=y.y(), **style_encodings(styles, "color"))
    tooltip = [
        alt.Tooltip("method", type="nominal"),
        alt.Tooltip("setting", type="quantitative", title=title, format=".3~g"),
        alt.Tooltip("value", type="quantitative", title=metric, format=".3f"),
    ]
    points = base.mark_point(filled=True, opacity=1).encode(
        tooltip=tooltip,
        size=alt.condition("datum.chosen", alt.value(140), alt.value(40)),
        **style_encodings(styles, "shape"),
    )
    line = base.mark_line(strokeWidth=1.8).encode(**style_encodings(styles, "strokeDash"))
    return Figure(
        f"tuning-{name.replace('.', '-')}",
        f"Tuning: {metric} against {title}",
        "Trials on rows cut from the training split; the large marks are the chosen values.",
        page_spec([line, points], rows, height=280),
        "wide",
    )
