"""Charts as Vega-Lite specifications: plain data that the page's script draws as SVG.

Colours of text and lines are CSS variables of the page, so that a chart follows light, dark and print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

# Okabe and Ito's palette, safe for colour-blind readers; the reference is drawn in the colour of the text.
# Yellow is left out: it cannot be seen on white.
_COLOURS = ("var(--ink)", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SHAPES = (("circle", "●"), ("square", "■"), ("triangle-up", "▲"), ("diamond", "◆"), ("triangle-down", "▼"))
_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True, slots=True)
class Mark:
    """How one method looks in every chart and in the legend."""

    colour: str
    shape: str
    glyph: str
    dash: tuple[int, ...]


def mark_of(index: int) -> Mark:
    """Return the look of the method at a place in the table; colour, shape and dash all change."""
    shape, glyph = _SHAPES[index % len(_SHAPES)]
    return Mark(_COLOURS[index % len(_COLOURS)], shape, glyph, _DASHES[index % len(_DASHES)])


@dataclass(frozen=True, slots=True)
class Axis:
    """A quantity on an axis."""

    field: str
    title: str
    format: str = ""
    scale: str = "linear"


def scatter(
    points: Sequence[Mapping[str, object]],
    marks: Mapping[str, Mark],
    *,
    x: Axis,
    y: Axis,
) -> Spec:
    """Return points with vertical intervals and their names beside them.

    Args:
        points: Rows with `method`, the fields of `x` and `y`, `low` and `high` around y, the texts
            `score` and `size`, and where the name stands: `align` ("left" or "right") and `rise` in pixels.
        marks: The look of each method.
        x: Horizontal quantity.
        y: Vertical quantity.
    """
    horizontal = {"field": x.field, "type": "quantitative", "scale": _scale(x), "axis": _axis(x)}
    vertical = {"field": y.field, "type": "quantitative", "scale": _scale(y), "axis": _axis(y)}
    tooltip = [
        {"field": "method"},
        {"field": "score", "title": y.title},
        {"field": "size", "title": "on disk"},
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7},
            "encoding": {"x": horizontal, "y": {**vertical, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {"x": horizontal, "y": vertical, "shape": _by("shape", marks), "tooltip": tooltip},
        },
        {
            "mark": {
                "type": "text",
                "align": {"expr": "datum.align"},
                "dx": {"expr": "datum.align == 'left' ? 9 : -9"},
                "dy": {"expr": "datum.rise"},
                "fontSize": 12,
                "color": "var(--ink)",
            },
            "encoding": {"x": horizontal, "y": vertical, "text": {"field": "method"}},
        },
    ]
    for layer in layers[:2]:  # names stay in the colour of the text, to be read on light and on dark
        layer["encoding"]["color"] = _by("colour", marks)
    return _chart({"layer": layers, "data": {"values": list(points)}}, height=320)


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
    horizontal = {"field": x.field, "type": "quantitative", "scale": _scale(x), "axis": _axis(x)}
    vertical = {"field": y.field, "type": "quantitative", "scale": _scale(y), "axis": _axis(y)}
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
            "encoding": {"x": horizontal, "y": vertical, "strokeDash": _by("dash", marks)},
        },
        {
            # Large and invisible: something to point at for the exact values.
            "mark": {"type": "point", "size": 160, "opacity": 0},
            "encoding": {"x": horizontal, "y": vertical, "tooltip": tooltip},
        },
    ]
    if len(rows) <= 12 * max(len(marks), 1):
        layers.append(
            {
                "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                "encoding": {
                    "x": horizontal,
                    "y": vertical,
                    "shape": _by("shape", marks),
                    "tooltip": tooltip,
                },
            }
        )
    for layer in layers:
        layer["encoding"]["color"] = _by("colour", marks)
    if line:
        layers.append(_line(*line))
    return _chart({"layer": layers, "data": {"values": list(rows)}}, height=280)


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
    begin = {"field": "from", "type": "quantitative", "scale": {"nice": False}, "axis": _axis(x)}
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
    return _chart(body, height=max(120, 20 * len(layers)))


def _chart(body: Spec, *, height: int) -> Spec:
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": None,
        # The page's legend sets which methods are hidden.
        "params": [{"name": "hidden", "value": []}],
        "transform": [{"filter": "indexof(hidden, datum.method) < 0"}],
        "config": {
            "font": "inherit",
            "view": {"stroke": None},
            "axis": {
                "labelColor": "var(--soft)",
                "titleColor": "var(--soft)",
                "titleFontWeight": "normal",
                "titleFontSize": 12,
                "labelFontSize": 11,
                "titlePadding": 10,
                "gridColor": "var(--line)",
                "domainColor": "var(--line)",
                "tickColor": "var(--line)",
                "labelOverlap": True,
                "labelSeparation": 8,
            },
        },
        **body,
    }


def _line(value: float, name: str) -> Spec:
    common: Spec = {"y": {"datum": value}}
    return {
        "data": {"values": [{"name": name, "method": ""}]},
        "layer": [
            {
                "mark": {"type": "rule", "color": "var(--soft)", "strokeDash": [1, 3], "strokeWidth": 1.5},
                "encoding": common,
            },
            {
                "mark": {"type": "text", "color": "var(--soft)", "align": "right", "dy": -6, "fontSize": 11},
                "encoding": {**common, "x": {"value": "width"}, "text": {"field": "name"}},
            },
        ],
    }


def _by(look: str, marks: Mapping[str, Mark]) -> Spec:
    scale = {"domain": list(marks), "range": [getattr(mark, look) for mark in marks.values()]}
    return {"field": "method", "type": "nominal", "scale": scale, "legend": None}


def _scale(axis: Axis) -> Spec:
    return (
        {"type": axis.scale, "zero": False, "nice": True}
        if axis.scale == "linear"
        else {"type": axis.scale, "nice": False, "padding": 30}
    )


def _axis(axis: Axis) -> Spec:
    axis_ = {"title": axis.title, "tickCount": 5, "grid": axis.field != "step" and axis.scale == "linear"}
    return {**axis_, "format": axis.format} if axis.format else axis_
