"""The picture of serving at scale: how often an adapter is ready, against slots and against replicas.

Lines are the formula, points are the simulation; both are in the committed record.
"""

import json
from pathlib import Path
from typing import Any, cast

import altair as alt

from docs.picture import svg_of
from rankfold.report.chart_style import INK, LINE, SOFT, style_of

SCALE_PICTURE = Path(__file__).parent / "assets" / "serving_at_scale.svg"

_RECORD = Path(__file__).resolve().parents[1] / "benchmarks" / "records" / "scale.json"
_ADAPTERS = 1_000_000
_NOTE = "One million adapters, requests by Zipf's law. Lines: formula. Points: 200,000 simulated requests."
_WIDTH, _HEIGHT = 345, 250
_AXIS: dict[str, Any] = {
    "labelColor": SOFT,
    "titleColor": SOFT,
    "titleFontWeight": "normal",
    "titleFontSize": 13,
    "labelFontSize": 12,
    "gridColor": LINE,
    "domainColor": LINE,
    "tickColor": LINE,
}


def read_scale() -> dict[str, Any]:
    """Return the record of the formula, the simulation and the bank that checks it."""
    return json.loads(_RECORD.read_text("utf-8"))


def table() -> str:
    """Return the table of hit rates: slots by number of adapters and exponent."""
    rows = [row for row in read_scale()["curves"] if row["exponent"] in (0.8, 1.0, 1.2)]
    slots = sorted({row["slots"] for row in rows})
    lines = [
        "| adapters | exponent | " + " | ".join(f"{count:,} slots" for count in slots) + " |",
        "| ---: | ---: |" + " ---: |" * len(slots),
    ]
    for adapters in sorted({row["adapters"] for row in rows}):
        for exponent in sorted({row["exponent"] for row in rows}):
            cells = {
                row["slots"]: f"{row['simulated']:.2f}"
                for row in rows
                if (row["adapters"], row["exponent"]) == (adapters, exponent)
            }
            texts = [cells.get(count, "1") for count in slots]
            lines.append(f"| {adapters:,} | {exponent} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def scale_picture() -> str:
    """Return the SVG text."""
    record = read_scale()
    slots = [
        {
            "x": row["slots"],
            "line": row["predicted"],
            "point": row["simulated"],
            "of": f"s = {row['exponent']}",
        }
        for row in record["curves"]
        if row["adapters"] == _ADAPTERS
    ]
    replicas = [
        {"x": row["replicas"], "line": line, "point": point, "of": name}
        for row in record["replicas"]
        for name, line, point in (
            ("by name", row["predicted_by_name"], row["by_name"]),
            ("any one", record["replicas"][0]["predicted_by_name"], row["by_turn"]),
        )
    ]
    chart = alt.hconcat(
        _panel("One process", "slots", slots),
        _panel("Replicas of 256 slots, s = 1", "replicas", replicas),
        spacing=34,
    ).resolve_scale(color="independent")
    return svg_of(chart, _NOTE, "Hit rate of slots against their number, and against replicas")


def _panel(title: str, axis: str, rows: list[dict[str, Any]]) -> alt.LayerChart:
    names = list(dict.fromkeys(row["of"] for row in rows))
    colours = alt.Scale(domain=names, range=[style_of(index).colour for index in range(len(names))])
    legend = alt.Legend(title=None, orient="top", labelColor=INK, labelFontSize=13, symbolOpacity=1)
    values = sorted({row["x"] for row in rows})
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "x",
            type="quantitative",
            scale=alt.Scale(type="log", base=2),
            axis=alt.Axis(title=axis, values=values, grid=False, format=",d", **_AXIS),
        ),
        color=alt.Color("of", type="nominal", scale=colours, legend=legend),
    )
    scale = alt.Scale(domain=[0, 1])
    rate = alt.Axis(title="requests whose adapter is in a slot", format="%", tickCount=5, **_AXIS)
    layers = [
        base.mark_line(strokeWidth=1.6).encode(y=alt.Y("line", type="quantitative", scale=scale, axis=rate)),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            y=alt.Y("point", type="quantitative", scale=scale, axis=rate)
        ),
    ]
    text = alt.TitleParams(title, anchor="start", color=INK, fontSize=15, fontWeight=600, offset=10)
    return cast("Any", alt.layer(*layers)).properties(width=_WIDTH, height=_HEIGHT, title=text)
