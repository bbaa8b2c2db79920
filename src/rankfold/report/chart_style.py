"""The look of every chart: styles of variants, axes, intervals, and the frame that the page draws into.

A chart is an Altair chart, which becomes a Vega-Lite specification: plain data that the page's script draws
as SVG. Colours of text and lines are CSS variables of the page: a chart follows light, dark and print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt

from rankfold.bench.statistics.comparison import Interval
from rankfold.report.format import range_text, score_text

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"

# Okabe and Ito's palette, safe for colour-blind readers; the reference is drawn in the colour of the text.
# Yellow is left out: it cannot be seen on white.
_COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SHAPES = (("circle", "●"), ("square", "■"), ("triangle-up", "▲"), ("diamond", "◆"), ("triangle-down", "▼"))
_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))

_CHANNELS: dict[str, tuple[type[alt.Color | alt.Shape | alt.StrokeDash], str]] = {
    "color": (alt.Color, "colour"),
    "shape": (alt.Shape, "shape"),
    "strokeDash": (alt.StrokeDash, "dash"),
}


@dataclass(frozen=True, slots=True)
class Style:
    """The look of one variant in every chart and in the legend."""

    colour: str
    shape: str
    glyph: str
    dash: tuple[int, ...]


def style_of(index: int) -> Style:
    """Return the style at an index of the table; neighbours differ in colour, shape and dash."""
    shape, glyph = _SHAPES[index % len(_SHAPES)]
    return Style(_COLOURS[index % len(_COLOURS)], shape, glyph, _DASHES[index % len(_DASHES)])


@dataclass(frozen=True, slots=True)
class Axis:
    """A quantity on an axis; the chart chooses the ticks if there are none."""

    field: str
    title: str
    format: str = ""
    scale: Literal["linear", "log"] = "linear"
    ticks: tuple[float, ...] = ()

    def x(self, field: str = "") -> alt.X:
        """Return the horizontal encoding of this quantity, or of another field on its axis."""
        return alt.X(field or self.field, type="quantitative", scale=self._scale(), axis=self.ruler())

    def y(self, field: str = "") -> alt.Y:
        """Return the vertical encoding of this quantity, or of another field on its axis."""
        return alt.Y(field or self.field, type="quantitative", scale=self._scale(), axis=self.ruler())

    def ruler(self) -> alt.Axis:
        """Return the title, ticks and grid lines."""
        ticks: Spec = {"values": list(self.ticks)} if self.ticks else {"tickCount": 5}
        ticks |= {"format": self.format} if self.format else {}
        return alt.Axis(title=self.title, grid=self.field != "step" and self.scale == "linear", **ticks)

    def _scale(self) -> alt.Scale:
        if self.scale == "linear":
            return alt.Scale(type="linear", zero=False, nice=True)
        return alt.Scale(type="log", nice=False, padding=30)


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart of a page.

    Attributes:
        name: Tells it from the other charts of its study.
        title: Metric and quantity.
        caption: How to read it.
        spec: The Vega-Lite specification with its rows.
        width: Share of the page's width.
        key: Styles that the study's legend does not explain.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    width: Literal["third", "half", "wide"] = "third"
    key: Mapping[str, Style] = field(default_factory=dict[str, Style])

    @property
    def rows(self) -> Rows:
        """The rows of data that are drawn."""
        return self.spec["data"]["values"]


def style_encodings(styles: Mapping[str, Style], *channels: str, field: str = "method") -> dict[str, Any]:
    """Return encodings ("color", "shape", "strokeDash") that give each value of a field its style."""
    encodings: dict[str, Any] = {}
    for name in channels:
        channel, part = _CHANNELS[name]
        scale = alt.Scale(domain=list(styles), range=[getattr(style, part) for style in styles.values()])
        encodings[name] = channel(field, type="nominal", scale=scale, legend=None)
    return encodings


def score_fields(score: Interval) -> dict[str, float | str]:
    """Return a metric as fields of a chart's row: `value`, `low`, `high`, and `score` as text."""
    text = f"{score_text(score)} {range_text(score)}".strip()
    return {"value": score.value, "low": score.low, "high": score.high, "score": text}


def interval_layer(
    x: alt.X, y: Axis, styles: Mapping[str, Style], *, field: str = "method", **mark: Any
) -> alt.Chart:
    """Return the whiskers: vertical rules from `low` to `high` of each row."""
    rules = alt.Chart().mark_rule(strokeWidth=1.5, opacity=0.7, **mark)
    return rules.encode(x=x, y=y.y("low"), y2="high", **style_encodings(styles, "color", field=field))


def level_layers(value: float, name: str) -> list[alt.Chart]:
    """Return a horizontal line for comparison, with its name."""
    base = alt.Chart(alt.Data(values=[{"name": name}])).encode(y=alt.datum(value))
    text = base.mark_text(color=SOFT, align="right", dy=-6, fontSize=11)
    return [
        base.mark_rule(color=SOFT, strokeDash=[1, 3], strokeWidth=1.5),
        text.encode(x=alt.value("width"), text=alt.Text("name", type="nominal")),
    ]


def page_spec(layers: Sequence[alt.Chart], rows: Rows, *, height: int) -> Spec:
    """Return a whole specification in the page's style.

    Args:
        layers: Drawn from the back to the front; those without data of their own draw `rows`.
        rows: The data. The page's legend sets the parameter `hidden`, which takes methods out of it.
        height: In pixels; the width is the container's.
    """
    chart = alt.layer(*layers, data=alt.NamedData("rows")).properties(
        width="container",
        height=height,
        background="transparent",
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        config=alt.Config(font="inherit", view=alt.ViewConfig(stroke=None), axis=_axis_config()),
    )
    chart = chart.add_params(alt.param(name="hidden", value=[]))
    chart = chart.transform_filter("indexof(hidden, datum.method) < 0")
    # Altair would check every row against the schema, which takes longer than everything else.
    return {**chart.to_dict(), "data": {"values": list(rows)}}


def _axis_config() -> alt.AxisConfig:
    return alt.AxisConfig(
        labelColor=SOFT,
        titleColor=SOFT,
        titleFontWeight="normal",
        titleFontSize=12,
        labelFontSize=11,
        titlePadding=10,
        gridColor=LINE,
        domainColor=LINE,
        tickColor=LINE,
        labelOverlap=True,
        labelSeparation=8,
    )
