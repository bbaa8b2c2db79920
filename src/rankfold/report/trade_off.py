"""What a method costs and what it gives: points with intervals, and the front that nothing else is beyond."""

from collections.abc import Callable, Mapping, Sequence
from math import log10
from typing import Any

from rankfold.bench.statistics.scores import SMALLER_IS_BETTER
from rankfold.report.chart_parts import Axis, Mark, Spec, by, chart, encoded, figure, score_fields, whiskers
from rankfold.report.name_places import HEIGHT, place_names, short_names
from rankfold.report.study import Study
from rankfold.report.words import bytes_text, capital, metric_name
from rankfold.runs.record import RunRecord

# Widths of a chart in pixels, half the page and all of it; with more points than these it takes all of it.
_HALF, _WHOLE = 440, 960
# Letters of a name that leave room for others.
_LONGEST_NAME = {_HALF: 28, _WHOLE: 44}
_MANY = 10
# Below this width, on a telephone, there is no room for names; the legend has them.
_NARROW = 340

Point = dict[str, Any]


def trade_offs(study: Study, marks: Mapping[str, Mark]) -> list[dict[str, Any]]:
    """Return the charts of the metric against bytes on disk and against trainable numbers."""
    return [
        _figure(study, marks, Axis("bytes", "bytes on disk (logarithmic)", "~s", "log"), _bytes, bytes_text),
        _figure(
            study,
            marks,
            Axis("trainable", "trainable numbers (logarithmic)", "~s", "log"),
            lambda run: run.parameters.trainable,
            lambda count: f"{count:,.0f}",
        ),
    ]


def _bytes(run: RunRecord) -> float:
    return run.bytes.weights_file


def _figure(
    study: Study,
    marks: Mapping[str, Mark],
    cost: Axis,
    read: Callable[[RunRecord], float],
    told: Callable[[float], str],
) -> dict[str, Any]:
    metric = metric_name(study.metric)
    better = "down" if study.metric in SMALLER_IS_BETTER else "up"
    points = _points(study, read, told)
    title = f"{capital(metric)} against {cost.title.removesuffix(' (logarithmic)')}"
    is_wide = len(points) > _MANY
    _name(points, _WHOLE if is_wide else _HALF)
    return figure(
        cost.field,
        title,
        f"Further left is smaller, further {better} is better; whiskers are the intervals of the table. The "
        "line is the front: nothing that was run is both smaller and better by its mean.",
        _scatter(points, marks, x=cost, y=Axis("value", metric)),
        width="wide" if is_wide else "half",
    )


def _points(study: Study, read: Callable[[RunRecord], float], told: Callable[[float], str]) -> list[Point]:
    """Return a point for each row that has a score and a cost."""
    points: list[Point] = []
    for row in study.rows:
        cost = row.mean(read)
        if cost and row.score:
            points.append(
                {
                    "method": row.label,
                    "cost": round(cost),
                    "size": told(cost),
                    **score_fields(row.score),
                }
            )
    for point in points:
        point["front"] = is_on_front(point, points, study.metric)
    return points


def is_on_front(point: Point, points: Sequence[Point], metric: str) -> bool:
    """Return whether no other point is as good in both cost and value, and better in one."""
    sign = -1 if metric in SMALLER_IS_BETTER else 1
    return not any(
        other["cost"] <= point["cost"]
        and sign * other["value"] >= sign * point["value"]
        and (other["cost"], other["value"]) != (point["cost"], point["value"])
        for other in points
    )


def _name(points: Sequence[Point], width: int) -> None:
    """Write names beside their points where there is room: those of the front first, then the reference."""
    order = sorted(points, key=lambda point: (not point["front"], point is not points[0]))
    names = short_names([point["method"] for point in order], _LONGEST_NAME[width])
    places = place_names(
        names,
        [log10(point["cost"]) for point in order],
        [point["value"] for point in order],
        ends=(
            min((each["low"] for each in points), default=0),
            max((each["high"] for each in points), default=1),
        ),
        width=width,
    )
    for point, name, place in zip(order, names, places, strict=True):
        point["name"] = name if place else ""
        point["align"], point["rise"] = (place.align, place.rise) if place else ("left", 0)


def _scatter(points: Sequence[Point], marks: Mapping[str, Mark], *, x: Axis, y: Axis) -> Spec:
    """Return points with vertical intervals, their names beside them, and the front behind them."""
    horizontal, vertical = {**encoded(x), "field": "cost"}, encoded(y)
    tooltip = [
        {"field": "method"},
        {"field": "score", "title": y.title},
        {"field": "size", "title": x.field},
    ]
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {
                "type": "line",
                "interpolate": "step-after",
                "color": "var(--soft)",
                "strokeWidth": 1,
                "strokeDash": [4, 3],
            },
            "encoding": {"x": horizontal, "y": vertical},
        },
        whiskers(horizontal, vertical, marks),
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {
                "x": horizontal,
                "y": vertical,
                "shape": by("shape", marks),
                "color": by("colour", marks),
                "tooltip": tooltip,
            },
        },
        {
            # Names stay in the colour of the text, to be read on light and on dark.
            "mark": {
                "type": "text",
                "opacity": {"expr": f"width < {_NARROW} ? 0 : 1"},
                "align": {"expr": "datum.align"},
                "dx": {"expr": "datum.align == 'left' ? 9 : -9"},
                "dy": {"expr": "datum.rise"},
                "fontSize": 12,
                "color": "var(--ink)",
            },
            "encoding": {"x": horizontal, "y": vertical, "text": {"field": "name"}},
        },
    ]
    return chart({"layer": layers, "data": {"values": list(points)}}, height=HEIGHT)
