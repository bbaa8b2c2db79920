"""What charts are put together from: looks of methods, axes, and the frame that the page draws into.

A chart is a Vega-Lite specification: plain data that the page's script draws as SVG. Colours of text and
lines are CSS variables of the page, so that a chart follows light, dark and print.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rankfold.bench.statistics.stats import Interval
from rankfold.report.format import range_text, score_text

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
    """A quantity on an axis; ticks are chosen by the chart if none are given."""

    field: str
    title: str
    format: str = ""
    scale: str = "linear"
    ticks: tuple[float, ...] = ()


def chart(body: Spec, *, height: int) -> Spec:
    """Return a whole specification; methods that the legend unticks are taken out of its rows."""
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


def level(value: float, name: str) -> Spec:
    """Return a horizontal line for comparison, with its name."""
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


def by(look: str, marks: Mapping[str, Mark], *, field: str = "method") -> Spec:
    """Return a look ("colour", "shape" or "dash") of a field's values."""
    scale = {"domain": list(marks), "range": [getattr(mark, look) for mark in marks.values()]}
    return {"field": field, "type": "nominal", "scale": scale, "legend": None}


def scale_of(axis: Axis) -> Spec:
    """Return a linear scale, or a logarithmic one with room at its ends."""
    return (
        {"type": axis.scale, "zero": False, "nice": True}
        if axis.scale == "linear"
        else {"type": axis.scale, "nice": False, "padding": 30}
    )


def axis_of(axis: Axis) -> Spec:
    """Return how an axis is written."""
    shown: Spec = {"title": axis.title, "grid": axis.field != "step" and axis.scale == "linear"}
    shown |= {"values": list(axis.ticks)} if axis.ticks else {"tickCount": 5}
    return {**shown, "format": axis.format} if axis.format else shown


def encoded(axis: Axis) -> Spec:
    """Return the encoding of a quantity by a place."""
    return {"field": axis.field, "type": "quantitative", "scale": scale_of(axis), "axis": axis_of(axis)}


def score_fields(score: Interval) -> dict[str, float | str]:
    """Return a metric as the fields of a chart's row: `value`, `low`, `high` and, to be read, `score`."""
    text = f"{score_text(score)} {range_text(score)}".strip()
    return {"value": score.value, "low": score.low, "high": score.high, "score": text}


def whiskers(
    horizontal: Spec,
    vertical: Spec,
    marks: Mapping[str, Mark],
    *,
    field: str = "method",
    look: Spec | None = None,
) -> Spec:
    """Return the layer of intervals, from `low` to `high` of each row."""
    return {
        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7, **(look or {})},
        "encoding": {
            "x": horizontal,
            "y": {**vertical, "field": "low"},
            "y2": {"field": "high"},
            "color": by("colour", marks, field=field),
        },
    }


def figure(
    name: str,
    title: str,
    caption: str,
    spec: Spec,
    *,
    width: Literal["third", "half", "wide"] = "third",
    key: Mapping[str, Mark] | None = None,
) -> dict[str, Any]:
    """Return a chart as the template wants it.

    Args:
        name: Tells it from the other charts of its study.
        title: What is drawn.
        caption: How to read it.
        spec: The specification, with its rows in it.
        width: How much of the page's width it takes.
        key: Looks that the study's legend does not explain.
    """
    rows = len(spec["data"]["values"])
    shown = [{"label": label, "mark": mark} for label, mark in (key or {}).items()]
    return {
        "name": name,
        "title": title,
        "caption": caption,
        "spec": spec,
        "rows": rows,
        "width": width,
        "key": shown,
    }
