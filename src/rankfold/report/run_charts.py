"""Charts of one run: curves of the training, confusion of classes, predicted and true numbers, lengths."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import altair as alt
import numpy as np

from rankfold.report.chart_style import INK, SOFT, Axis, Figure, Rows, Spec, page_spec, style_of
from rankfold.report.charts import curve_chart
from rankfold.report.format import capital, metric_name
from rankfold.runs.record import RunRecord

MOST_CLASSES = 30
"""Classes of a confusion matrix that can still be read."""

_FEW_CLASSES = 6
_MOST_POINTS = 2000
_BINS = 24
_LABEL_LETTERS = 24

_BLUE = "#0072B2"


def curve_figures(record: RunRecord) -> list[Figure]:
    """Return the losses over the training steps in one chart, and the metric that was measured on the way."""
    losses = [
        *_points(record.curve.train, "loss", "training"),
        *_points(record.curve.validation, "loss", "held out"),
    ]
    names = [name for name in record.metrics if any(name in point for point in record.curve.validation)]
    figures = [
        Figure(
            "loss",
            "Loss",
            "Of each training batch, and on held-out rows. Where the second rises again, the model overfits.",
            _curve(losses, Axis("value", "loss", format="~g")),
            "half",
            {name: style_of(index) for index, name in enumerate(("training", "held out"))},
        )
    ]
    for name in names[:1]:
        rows = _points(record.curve.validation, name, "held out")
        # Earlier records have the baselines of the main metric only.
        baselines = record.baseline_metrics or {
            key: {record.task.metric: value} for key, value in record.baselines.items()
        }
        baseline = next(((scores[name], key) for key, scores in baselines.items() if name in scores), None)
        title = f"{capital(metric_name(name))} on held-out rows"
        chart = _curve(rows, Axis("value", metric_name(name), format="~g"), baseline)
        figures.append(Figure("metric", title, "Measured during the training.", chart, "half"))
    return _fill_line([figure for figure in figures if figure.rows])


def _points(curve: Sequence[Mapping[str, float]], field: str, line: str) -> list[dict[str, Any]]:
    points = [point for point in curve if field in point]
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), 400)).round().astype(int))
    return [
        {"method": line, "step": points[index]["step"], "value": value, "low": value, "high": value}
        for index in chosen
        if np.isfinite(value := float(f"{points[index][field]:.5g}"))
    ]


def _curve(rows: Rows, y: Axis, baseline: tuple[float, str] | None = None) -> Spec:
    lines = dict.fromkeys(str(row["method"]) for row in rows)
    styles = {line: style_of(index) for index, line in enumerate(("training", "held out")) if line in lines}
    return curve_chart(rows, styles, y=y, baseline=baseline)


def _fill_line(figures: list[Figure]) -> list[Figure]:
    return [replace(figure, width="wide") for figure in figures] if len(figures) == 1 else figures


def confusion_figure(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> Figure | None:
    """Return the confusion matrix: true classes as rows, predicted ones as columns, coloured by row share.

    Args:
        pairs: The true and the predicted class of each row.
        names: The classes in the order of the matrix.

    Returns:
        None if there are too many classes to draw.
    """
    if not 2 <= len(names) <= MOST_CLASSES or not pairs:  # noqa: PLR2004
        return None
    counts, totals = Counter(pairs), Counter(true for true, _ in pairs)
    short = _short_names(names)
    cells = [
        {
            "method": "",
            "true": short[true],
            "predicted": short[predicted],
            "rows": counts[true, predicted],
            "share": round(counts[true, predicted] / totals[true], 4) if totals[true] else 0.0,
        }
        for true in names
        for predicted in names
    ]
    caption = "Each line is a true class, each column a predicted one; the colour is the share of the line."
    width = "half" if len(names) <= _FEW_CLASSES else "wide"
    return Figure("confusion", "Confusion matrix", caption, _matrix(cells, list(short.values())), width)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return class names cut to the width beside a chart, each still different from the others."""
    short = {
        name: name if len(name) <= _LABEL_LETTERS else f"{name[: _LABEL_LETTERS - 1]}…" for name in names
    }
    taken = Counter(short.values())
    return {
        name: text if taken[text] == 1 else f"{index}: {text}"
        for index, (name, text) in enumerate(short.items())
    }


def _matrix(cells: Rows, names: Sequence[str]) -> Spec:
    def axis(angle: int) -> alt.Axis:
        return alt.Axis(
            ticks=False, domain=False, labelAngle=angle, grid=False, labelLimit=150, labelOverlap=False
        )

    few = len(names) <= 12  # noqa: PLR2004
    base = alt.Chart().encode(
        x=alt.X("predicted", type="nominal", sort=list(names), axis=axis(0 if len(names) <= 4 else -45)),  # noqa: PLR2004
        y=alt.Y("true", type="nominal", sort=list(names), axis=axis(0)),
    )
    tooltip = [
        alt.Tooltip("true", type="nominal"),
        alt.Tooltip("predicted", type="nominal"),
        alt.Tooltip("rows", type="quantitative"),
        alt.Tooltip("share", type="quantitative", title="share of the line", format=".1%"),
    ]
    scale = alt.Scale(scheme="blues", domain=[0, 1])
    layers = [
        base.mark_rect(stroke="var(--line)").encode(
            color=alt.Color("share", type="quantitative", scale=scale, legend=None), tooltip=tooltip
        )
    ]
    if few:
        colour = alt.condition("datum.share > 0.5", alt.value("white"), alt.value("#1a1a18"))
        layers.append(base.mark_text(fontSize=12).encode(text="rows:Q", color=colour, tooltip=tooltip))
    return page_spec(layers, cells, height=max(140, (40 if few else 20) * len(names)))


def number_figures(pairs: Sequence[tuple[float, float]], unit: str) -> list[Figure]:
    """Return predicted against true numbers, and a histogram of the residuals.

    Args:
        pairs: The true and the predicted number of each row.
        unit: Of the numbers, for the axes; empty if they have none.
    """
    finite = [pair for pair in pairs if math.isfinite(sum(pair))]
    if not finite:
        return []
    step = -(-len(finite) // _MOST_POINTS)
    rows = [{"method": "", "true": true, "predicted": predicted} for true, predicted in finite[::step]]
    note = f" (in {unit})" if unit else ""
    residuals = [predicted - true for true, predicted in finite]
    return [
        Figure(
            "scatter",
            "Predicted and true",
            f"Each point is a held-out row{note}; on the line a prediction is right.",
            _scatter(rows),
            "half",
        ),
        Figure(
            "residuals",
            "Residuals",
            f"Predicted minus true{note}. A middle beside 0 is a bias.",
            _histogram(_bins(residuals, _BINS), "predicted minus true", rule=0.0),
            "half",
        ),
    ]


def _scatter(rows: Rows) -> Spec:
    values = [float(row[name]) for row in rows for name in ("true", "predicted")]
    low, high = min(values), max(values)
    scale = alt.Scale(domain=[low, high], nice=True, zero=False)

    def axis(title: str) -> alt.Axis:
        return alt.Axis(title=title, tickCount=5, format="~s")

    line = alt.Chart(alt.Data(values=[{"true": low, "predicted": low}, {"true": high, "predicted": high}]))
    x = alt.X("true", type="quantitative", scale=scale, axis=axis("true"))
    y = alt.Y("predicted", type="quantitative", scale=scale, axis=axis("predicted"))
    tooltip = [alt.Tooltip(name, type="quantitative", format=".4~g") for name in ("true", "predicted")]
    layers = [
        line.mark_line(color=SOFT, strokeDash=[4, 3]).encode(x=x, y=y),
        alt.Chart().mark_circle(color=_BLUE, size=36, opacity=0.55).encode(x=x, y=y, tooltip=tooltip),
    ]
    return page_spec(layers, rows, height=300)


def length_figure(edges: Sequence[float], counts: Sequence[int], max_length: int, cut: int) -> Figure | None:
    """Return a histogram of the training rows' lengths in tokens, with the limit where rows are cut.

    Args:
        edges: Bounds of the bars, one more than there are counts.
        counts: Rows of each bar.
        max_length: The most tokens of a row.
        cut: How many rows reach it.
    """
    if not counts:
        return None
    bars = [
        {"method": "", "from": low, "to": high, "rows": count}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    cut_text = f" {cut:,} of {sum(counts):,} rows reach it and may have been cut." if cut else ""
    caption = f"Tokens of the training rows; the limit is {max_length:,}.{cut_text}"
    chart = _histogram(bars, "tokens", rule=float(max_length) if cut else None)
    return Figure("lengths", "Lengths", caption, chart, "wide")


def _bins(values: Sequence[float], count: int) -> list[dict[str, Any]]:
    counts, edges = cast(Any, np).histogram(values, bins=min(count, max(1, len(set(values)))))
    return [
        {"method": "", "from": float(low), "to": float(high), "rows": int(number)}
        for low, high, number in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _histogram(bars: Rows, title: str, *, rule: float | None = None) -> Spec:
    axis = alt.Axis(title=title, tickCount=5, grid=False, format="~s")
    base = alt.Chart().encode(
        x=alt.X("from", type="quantitative", scale=alt.Scale(zero=False, nice=False), axis=axis),
        x2="to",
        y=alt.Y("rows", type="quantitative", axis=alt.Axis(title="rows", tickCount=4, tickMinStep=1)),
        y2=alt.datum(0),
        tooltip=[
            alt.Tooltip("from", type="quantitative", format=".4~g"),
            alt.Tooltip("to", type="quantitative", format=".4~g"),
            alt.Tooltip("rows", type="quantitative"),
        ],
    )
    layers = [base.mark_bar(color=_BLUE, opacity=0.75, stroke="var(--paper)", strokeWidth=1)]
    if rule is not None:
        line = alt.Chart(alt.Data(values=[{"at": rule}]))
        layers.append(line.mark_rule(color=INK, strokeDash=[4, 3]).encode(x=alt.X("at", type="quantitative")))
    return page_spec(layers, bars, height=220)
