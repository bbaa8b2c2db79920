"""The picture of the README: score against bytes on disk, drawn from the committed records of a suite.

A panel is a task, a line is a method at two sizes, and a whisker is the 95 % interval over seeds and
examples. The SVG has colours for light and for dark and a ground of its own: it can be read on any page.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import log
from pathlib import Path
from typing import Any, Literal, cast

import altair as alt
import vl_convert

from rankfold.report.chart_style import INK, LINE, SOFT, Style, score_fields, style_of
from rankfold.report.format import bytes_text, capital, metric_name
from rankfold.report.study import Study, make_report
from rankfold.runs.records import find_records

PICTURE = Path(__file__).parent / "assets" / "accuracy_vs_bytes.svg"

_SUITE = Path(__file__).resolve().parents[1] / "benchmarks" / "records" / "per-byte"

# Names of the legend, in its order: PEFT's methods, ours, and the task head alone.
METHODS = {
    "peft:lora": "LoRA (PEFT)",
    "peft:unilora": "UniLoRA (PEFT)",
    "peft:lokr": "LoKr (PEFT)",
    "peft:vera": "VeRA (PEFT)",
    "effilora": "EffiLoRA",
    "tlora": "TLoRA",
    "relayed_lora": "Relayed LoRA",
    "head_only": "task head alone",
}
_TASKS = {"sst2": "SST-2, sentiment", "stsb": "STS-B, similarity"}

# The part of each scale that is drawn; intervals that go on beyond it are cut off at the frame.
_SCALES = {"sst2": (0.5, 0.9), "stsb": (0.0, 1.0)}
_WIDTH, _HEIGHT = 345, 270
_FEWEST, _MOST = 5_500, 80_000  # bytes, the ends of the horizontal scale
_GAP = 7  # pixels between neighbouring points, whose files are of nearly one size

_NOTE = "MiniLM, three seeds, 95 % intervals, cut off at the frame. Points are moved apart by a few pixels."

_STYLE = """
svg { --ink: #1a1a18; --soft: #5f5f59; --line: #dedcd3; --paper: #fdfdfb }
@media (prefers-color-scheme: dark) {
  svg { --ink: #eceae3; --soft: #a9a79f; --line: #3a3935; --paper: #161614 }
}
.paper { fill: var(--paper) }
"""


_STYLES = [*map(style_of, range(len(METHODS) - 1)), Style(SOFT, "cross", "✚", (1, 0))]


def picture_rows() -> list[dict[str, Any]]:
    """Return a row for each point: task, method, bytes, and the score with its interval."""
    studies = make_report(find_records(_SUITE), _SUITE).studies
    panels = [list(_study_rows(study)) for task in _TASKS for study in studies if study.task == task]
    for rows in panels:
        _move_apart(rows)
    return [row for rows in panels for row in rows]


def _study_rows(study: Study) -> Iterator[dict[str, Any]]:
    for result in study.results:
        size = result.mean(lambda run: run.bytes.weights_file)
        if size is None or result.score is None:
            continue
        method = METHODS[result.method]
        fields = score_fields(result.score)
        text = f"{method}, {study.task}: {bytes_text(size)}, {metric_name(study.metric)} {fields['score']}"
        yield {"task": study.task, "method": method, "bytes": size, "text": text} | fields


def _move_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Give each point of a panel a `shift` in pixels, so that no two whiskers cover each other."""
    order = sorted(rows, key=lambda row: row["bytes"])
    exact = [_WIDTH * log(row["bytes"] / _FEWEST) / log(_MOST / _FEWEST) for row in order]
    rightward = list(accumulate(exact, lambda left, x: max(x, left + _GAP)))
    leftward = list(accumulate(reversed(exact), lambda right, x: min(x, right - _GAP)))[::-1]
    for row, x, left, right in zip(order, exact, leftward, rightward, strict=True):
        row["shift"] = (left + right) / 2 - x


def picture() -> str:
    """Return the SVG text."""
    rows = picture_rows()
    panels = [_panel(task, [row for row in rows if row["task"] == task]) for task in _TASKS]
    title = "Score against bytes on disk, with 95 % confidence intervals"
    return svg_of(alt.hconcat(*panels, spacing=34), _NOTE, title)


def svg_of(chart: alt.HConcatChart, note: str, title: str) -> str:
    """Return the SVG text of panels, in the colours of the page it stands on, with a note below."""
    chart = chart.properties(
        padding=18,
        title=alt.TitleParams(
            note, orient="bottom", anchor="start", fontSize=12, fontWeight="normal", color=SOFT, offset=14
        ),
        background="transparent",
        config=alt.Config(
            font="system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif",
            view=alt.ViewConfig(stroke=None),
        ),
    )
    svg: str = cast("Any", vl_convert).vegalite_to_svg(chart.to_dict())
    ground = '<rect class="paper" width="100%" height="100%" rx="10"/>'
    head = f"<title>{title}</title><style>{_STYLE}</style>{ground}"
    return re.sub(r"(<svg[^>]*>)", rf"\1{head}", svg, count=1) + "\n"


def _by_method(channel: Literal["color", "shape"]) -> alt.Color | alt.Shape:
    """Return the encoding of a method by its colour or shape; the two have one legend together."""
    legend = alt.Legend(
        title=None,
        orient="top",
        columns=len(METHODS) // 2,
        columnPadding=22,
        rowPadding=6,
        symbolSize=90,
        symbolOpacity=1,
        labelColor=INK,
        labelFontSize=13,
        offset=16,
    )
    if channel == "color":
        scale = alt.Scale(domain=list(METHODS.values()), range=[style.colour for style in _STYLES])
        return alt.Color("method", type="nominal", scale=scale, legend=legend)
    scale = alt.Scale(domain=list(METHODS.values()), range=[style.shape for style in _STYLES])
    return alt.Shape("method", type="nominal", scale=scale, legend=legend)


def _panel(task: str, rows: Sequence[dict[str, Any]]) -> alt.LayerChart:
    metric = "accuracy" if task == "sst2" else "Pearson correlation"
    axis = {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "titleFontWeight": "normal",
        "titleFontSize": 13,
        "labelFontSize": 12,
        "gridColor": LINE,
        "domainColor": LINE,
        "tickColor": LINE,
    }
    x = alt.X(
        "bytes",
        type="quantitative",
        scale=alt.Scale(type="log", domain=[_FEWEST, _MOST], nice=False),
        axis=alt.Axis(
            title="bytes on disk",
            values=[6_000, 10_000, 20_000, 40_000, 80_000],
            labelExpr="datum.value / 1000 + ' kB'",
            grid=False,
            **axis,
        ),
    )

    def y(field: str) -> alt.Y:
        scale = alt.Scale(domain=list(_SCALES[task]), nice=False)
        return alt.Y(
            field, type="quantitative", scale=scale, axis=alt.Axis(title=capital(metric), tickCount=5, **axis)
        )

    base = alt.Chart(alt.Data(values=list(rows))).encode(x=x, y=y("value"), color=_by_method("color"))
    beside = {"xOffset": alt.ExprRef("datum.shift"), "clip": True}
    layers = [
        base.mark_line(strokeWidth=1.2, opacity=0.45, **beside),
        base.mark_rule(strokeWidth=1.6, opacity=0.6, **beside).encode(y=y("low"), y2="high"),
        base.mark_point(filled=True, size=85, opacity=1, **beside).encode(
            description=alt.Description("text", type="nominal"), shape=_by_method("shape")
        ),
    ]
    title = alt.TitleParams(_TASKS[task], anchor="start", color=INK, fontSize=15, fontWeight=600, offset=10)
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT, title=title)
