"""What a method costs and what it gives: points with intervals, and the front that nothing else is beyond."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from rankfold.bench.statistics.scores import SMALLER_IS_BETTER
from rankfold.report.chart_style import Axis, Mark, Spec, by, chart, encoded, figure, score_fields, whiskers
from rankfold.report.format import bytes_text, capital, metric_name
from rankfold.report.study import Study
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


# Of the chart and of its letters, in pixels; the page may draw it wider, which only leaves more room.
HEIGHT = 320
_LETTER, _LINE = 6.6, 15
_MARGIN, _GAP, _RISE = 30, 9, 9


@dataclass(frozen=True, slots=True)
class NamePlace:
    """Where a name begins or ends beside its point: `align` is "left" or "right", `rise` in pixels, down."""

    align: str
    rise: int


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def place_names(
    names: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    *,
    ends: tuple[float, float],
    width: float,
) -> list[NamePlace | None]:
    """Return a place for each name, the first having the choice; None for a name that has no room.

    Args:
        names: What is written.
        x: Places of the points across the chart, in any linear unit.
        y: Places up the chart, in any linear unit.
        ends: Of the chart, in the unit of `y`.
        width: Of the chart, in pixels.
    """
    across = [_scaled(value, min(x), max(x), _MARGIN, width - _MARGIN) for value in x]
    down = [_scaled(value, ends[1], ends[0], 0, HEIGHT) for value in y]
    taken = [_Box(left - 5, left + 5, top - 5, top + 5) for left, top in zip(across, down, strict=True)]
    places: list[NamePlace | None] = []
    for name, left, top in zip(names, across, down, strict=True):
        found: NamePlace | None = None
        for place in (NamePlace(align, rise) for rise in (-_RISE, _RISE + 6) for align in ("left", "right")):
            box = _box(place, left, top, _LETTER * len(name))
            if box.left >= 0 and box.right <= width and not any(box.meets(other) for other in taken):
                taken.append(box)
                found = place
                break
        places.append(found)
    return places


def _box(place: NamePlace, left: float, top: float, length: float) -> _Box:
    begin = left + _GAP if place.align == "left" else left - _GAP - length
    middle = top + place.rise - _LINE / 4
    return _Box(begin, begin + length, middle - _LINE / 2, middle + _LINE / 2)


def _scaled(value: float, begin: float, end: float, low: float, high: float) -> float:
    return low + (high - low) * ((value - begin) / (end - begin) if begin != end else 0.5)


def short_names(labels: Sequence[str], longest: int) -> list[str]:
    """Return what stands beside points; the tooltip and the legend have the whole labels.

    Labels of one method that are too long leave out the words that they share, and then what does not fit.
    What would then stand beside several points tells nothing and is left out.
    """
    long: dict[str, list[list[str]]] = {}
    for words in (label.split() for label in labels if len(label) > longest):
        long.setdefault(words[0], []).append(words)
    names = [
        label
        if len(label) <= longest
        else _fitting(_without_shared(label.split(), long[label.split()[0]]), longest)
        for label in labels
    ]
    return [name if names.count(name) == 1 else "" for name in names]


def _without_shared(words: Sequence[str], family: Sequence[Sequence[str]]) -> list[str]:
    shared = set(words[1:]).intersection(*family) if len(family) > 1 else set[str]()
    return [word for word in words if word not in shared]


def _fitting(words: Sequence[str], longest: int) -> str:
    """Return as many words as fit, one at least."""
    for count in range(1, len(words)):
        if len(" ".join(words[: count + 1])) > longest:
            return " ".join([*words[:count], "…"])
    return " ".join(words)
