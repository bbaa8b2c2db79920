"""Curves over a knob: rows that differ in one numeric setting, such as r, k or a ratio of learning rates."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rankfold.report.chart_style import (
    Axis,
    Mark,
    Spec,
    by,
    chart,
    encoded,
    figure,
    level,
    mark_of,
    score_fields,
    whiskers,
)
from rankfold.report.format import capital, metric_name
from rankfold.report.rows import Row
from rankfold.report.study import Study
from rankfold.runs.records import differing, label_of

FEWEST = 3

# A knob whose largest value is as many times its smallest is drawn on a logarithmic axis.
_WIDE_SPAN = 8

_MOST_TICKS = 10

# Lines stand a few pixels beside each other, so that their intervals do not cover each other.
_STEP = 5
_BESIDE: Spec = {"xOffset": {"expr": "datum.shift"}}


@dataclass(frozen=True, slots=True)
class Line:
    """Rows of one method that differ in nothing but a knob.

    Attributes:
        label: The method, with the other settings that tell it from other lines.
        points: The knob's value of each row, in rising order.
    """

    label: str
    points: tuple[tuple[float, Row], ...]


def find_knobs(rows: Sequence[Row]) -> dict[str, tuple[Line, ...]]:
    """Return the settings that were varied alone, each with its lines of at least `FEWEST` rows."""
    scored = [row for row in rows if row.score]
    names = dict.fromkeys(name for row in scored for name, value in row.settings.items() if _is_number(value))
    found = {name: _lines(name, scored) for name in names}
    return {name: lines for name, lines in found.items() if lines}


def knob_figures(study: Study) -> list[dict[str, Any]]:
    """Return a chart of the metric against each knob."""
    found = find_knobs(study.rows)
    # Two stand side by side; the last of an odd number has the line for itself.
    alone = len(found) if len(found) % 2 else 0
    return [
        _figure(study, name, lines, width="wide" if number == alone else "half")
        for number, (name, lines) in enumerate(found.items(), start=1)
    ]


def _lines(knob: str, rows: Sequence[Row]) -> tuple[Line, ...]:
    groups: dict[str, dict[float, Row]] = {}
    for row in rows:
        value = row.settings.get(knob)
        if _is_number(value):
            others = {name: other for name, other in row.settings.items() if name != knob}
            key = json.dumps([row.method, others], sort_keys=True)
            groups.setdefault(key, {}).setdefault(float(str(value)), row)
    long = [sorted(group.items()) for group in groups.values() if len(group) >= FEWEST]
    labels = _labels([points[0][1] for points in long], knob)
    return tuple(Line(label, tuple(points)) for label, points in zip(labels, long, strict=True))


def _labels(firsts: Sequence[Row], knob: str) -> list[str]:
    """Return a label for each line, by its first row: what it has besides the knob."""
    others = [(row.method, {n: v for n, v in row.settings.items() if n != knob}) for row in firsts]
    return [
        label_of(method, settings, differing([each for other, each in others if other == method]))
        for method, settings in others
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(
    study: Study, knob: str, lines: Sequence[Line], *, width: Literal["half", "wide"]
) -> dict[str, Any]:
    metric = metric_name(study.metric)
    marks = {line.label: mark_of(number) for number, line in enumerate(lines, start=1)}
    values = sorted({value for line in lines for value, _ in line.points})
    drawn = {row.label for line in lines for _, row in line.points}
    first = study.rows[0]
    reference = first if first.score and first.label not in drawn else None
    against = f" The dotted line is {first.label} with its interval." if reference else ""
    beside = " Methods stand a little beside each other." if len(lines) > 1 else ""
    return figure(
        f"knob-{knob.replace('.', '-')}",
        f"{capital(metric)} against {knob.replace('_', ' ')}",
        f"Rows that differ in nothing else; the whiskers are their intervals.{beside}{against}",
        _chart(lines, marks, reference, x=_axis(knob, values), y=Axis("value", metric)),
        width=width,
        key=marks,
    )


def _axis(knob: str, values: Sequence[float]) -> Axis:
    is_wide = values[0] > 0 and values[-1] / values[0] >= _WIDE_SPAN
    title = knob.replace("_", " ") + (" (logarithmic)" if is_wide else "")
    ticks = tuple(values) if len(values) <= _MOST_TICKS else ()
    return Axis("knob", title, ".6~g", "log" if is_wide else "linear", ticks)


def _chart(
    lines: Sequence[Line], marks: Mapping[str, Mark], reference: Row | None, *, x: Axis, y: Axis
) -> Spec:
    horizontal, vertical = encoded(x), encoded(y)
    looks = {"color": by("colour", marks, field="line")}
    tooltip = [{"field": "method"}, {"field": "score", "title": y.title}]
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "strokeWidth": 1.8, **_BESIDE},
            "encoding": {
                "x": horizontal,
                "y": vertical,
                "strokeDash": by("dash", marks, field="line"),
                **looks,
            },
        },
        whiskers(horizontal, vertical, marks, field="line", look=_BESIDE),
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, **_BESIDE},
            "encoding": {
                "x": horizontal,
                "y": vertical,
                "shape": by("shape", marks, field="line"),
                "tooltip": tooltip,
                **looks,
            },
        },
    ]
    if reference and reference.score:
        score = reference.score
        layers = [_band(score.low, score.high), *layers, level(score.value, reference.label)]
    shifts = [_STEP * (number - (len(lines) - 1) / 2) for number in range(len(lines))]
    rows = [
        {"method": row.label, "line": line.label, "knob": value, "shift": shift, **score_fields(row.score)}
        for line, shift in zip(lines, shifts, strict=True)
        for value, row in line.points
        if row.score
    ]
    return chart({"layer": layers, "data": {"values": rows}}, height=280)


def _band(low: float, high: float) -> Spec:
    return {
        "data": {"values": [{"method": ""}]},
        "mark": {"type": "rect", "color": "var(--soft)", "opacity": 0.1},
        "encoding": {"y": {"datum": low}, "y2": {"datum": high}},
    }
