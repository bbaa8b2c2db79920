"""Charts of score against cost: points with intervals, their names, and the Pareto front."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import altair as alt

from rankfold.report.chart_style import (
    INK,
    SOFT,
    Axis,
    Figure,
    Spec,
    Style,
    interval_layer,
    page_spec,
    score_fields,
    style_encodings,
)
from rankfold.report.format import bytes_text, capital, metric_name
from rankfold.report.results import file_bytes
from rankfold.report.study import Study
from rankfold.runs.record import RunRecord
from rankfold.tasks.metrics import is_smaller_better

HEIGHT = 320  # pixels, of a chart

# Widths of a chart in pixels, half the page and all of it; with more points than these it takes all of it.
_HALF, _WHOLE = 440, 960
# Letters of a name that leave room for others.
_LONGEST_NAME = {_HALF: 28, _WHOLE: 44}
_MANY = 10
# Below this width, on a telephone, there is no room for names; the legend has them.
_NARROW = 340
# Pixels: of a letter and a line of text, and the distance of a name from its point.
_LETTER, _TEXT_LINE = 6.6, 15
_MARGIN, _GAP, _RISE = 30, 9, 9

Point = dict[str, Any]


def trade_off_figures(study: Study, styles: Mapping[str, Style]) -> list[Figure]:
    """Return the charts of the metric against bytes on disk and against trainable parameters."""
    size = Axis("bytes", "bytes on disk (logarithmic)", "~s", "log")
    count = Axis("trainable", "trainable parameters (logarithmic)", "~s", "log")
    return [
        _figure(study, styles, size, file_bytes, bytes_text),
        _figure(study, styles, count, lambda run: run.parameters.trainable, lambda value: f"{value:,.0f}"),
    ]


def _figure(
    study: Study,
    styles: Mapping[str, Style],
    cost: Axis,
    read: Callable[[RunRecord], float],
    text: Callable[[float], str],
) -> Figure:
    metric = metric_name(study.metric)
    better = "down" if is_smaller_better(study.metric) else "up"
    points = list(_points(study, read, text))
    for point in points:
        point["front"] = is_on_front(point, points, study.metric)
    is_wide = len(points) > _MANY
    _name(points, _WHOLE if is_wide else _HALF)
    return Figure(
        cost.field,
        f"{capital(metric)} against {cost.title.removesuffix(' (logarithmic)')}",
        f"Further left is smaller, further {better} is better; whiskers are the intervals of the table. No "
        "method is both smaller and better by its mean than those on the dashed line.",
        _scatter(points, styles, cost=cost, metric=metric),
        "wide" if is_wide else "half",
    )


def _points(
    study: Study, read: Callable[[RunRecord], float], text: Callable[[float], str]
) -> Iterator[Point]:
    """Yield a point for each result that has a score and a cost."""
    for result in study.results:
        cost = result.mean(read)
        if cost and result.score:
            point = {"method": result.label, "cost": round(cost), "size": text(cost)}
            yield point | score_fields(result.score)


def is_on_front(point: Point, points: Sequence[Point], metric: str) -> bool:
    """Return whether no other point is as good in both cost and value, and better in one."""
    sign = -1 if is_smaller_better(metric) else 1
    return not any(
        other["cost"] <= point["cost"]
        and sign * other["value"] >= sign * point["value"]
        and (other["cost"], other["value"]) != (point["cost"], point["value"])
        for other in points
    )


def _scatter(points: Sequence[Point], styles: Mapping[str, Style], *, cost: Axis, metric: str) -> Spec:
    """Return points with vertical intervals, their names beside them, and the front behind them."""
    x, value = cost.x("cost"), Axis("value", metric)
    base = alt.Chart().encode(x=x, y=value.y())
    tooltip = [
        alt.Tooltip("method", type="nominal"),
        alt.Tooltip("score", type="nominal", title=metric),
        alt.Tooltip("size", type="nominal", title=cost.field),
    ]
    front = base.mark_line(interpolate="step-after", color=SOFT, strokeWidth=1, strokeDash=[4, 3])
    names = base.mark_text(
        opacity=alt.ExprRef(f"width < {_NARROW} ? 0 : 1"),
        align=alt.ExprRef("datum.align"),
        dx=alt.ExprRef(f"datum.align == 'left' ? {_GAP} : -{_GAP}"),
        dy=alt.ExprRef("datum.rise"),
        fontSize=12,
        color=INK,  # the colour of the text can be read on light and on dark
    )
    layers = [
        front.transform_filter("datum.front"),
        interval_layer(x, value, styles),
        base.mark_point(filled=True, size=110, opacity=1).encode(
            tooltip=tooltip, **style_encodings(styles, "shape", "color")
        ),
        names.encode(text=alt.Text("name", type="nominal")),
    ]
    return page_spec(layers, points, height=HEIGHT)


def _name(points: Sequence[Point], width: int) -> None:
    """Write names beside their points where there is room: those of the front first, then the reference."""
    order = sorted(points, key=lambda point: (not point["front"], point is not points[0]))
    names = short_names([point["method"] for point in order], _LONGEST_NAME[width])
    positions = place_names(
        names,
        [log10(point["cost"]) for point in order],
        [point["value"] for point in order],
        ends=(
            min((point["low"] for point in points), default=0),
            max((point["high"] for point in points), default=1),
        ),
        width=width,
    )
    for point, name, position in zip(order, names, positions, strict=True):
        point["name"] = name if position else ""
        point["align"], point["rise"] = (position.align, position.rise) if position else ("left", 0)


@dataclass(frozen=True, slots=True)
class NamePosition:
    """The position of a name beside its point: `align` is "left" or "right", `rise` in pixels, down."""

    align: str
    rise: int


_POSITIONS = [NamePosition(align, rise) for rise in (-_RISE, _RISE + 6) for align in ("left", "right")]


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
) -> list[NamePosition | None]:
    """Return a position for each name, the first names choosing first; None for a name without room.

    Args:
        names: The texts.
        x: Horizontal coordinates of the points, in any linear unit.
        y: Vertical coordinates of the points, in any linear unit.
        ends: Lower and upper end of the chart, in the unit of `y`.
        width: Of the chart, in pixels.
    """
    across = [_rescale(value, min(x), max(x), _MARGIN, width - _MARGIN) for value in x]
    down = [_rescale(value, ends[1], ends[0], 0, HEIGHT) for value in y]
    occupied = [_Box(left - 5, left + 5, top - 5, top + 5) for left, top in zip(across, down, strict=True)]
    positions: list[NamePosition | None] = []
    for name, left, top in zip(names, across, down, strict=True):
        boxes = {position: _box(position, left, top, _LETTER * len(name)) for position in _POSITIONS}
        free = [
            position
            for position, box in boxes.items()
            if box.left >= 0 and box.right <= width and not any(box.meets(other) for other in occupied)
        ]
        positions.append(free[0] if free else None)
        occupied += [boxes[position] for position in free[:1]]
    return positions


def _box(position: NamePosition, left: float, top: float, length: float) -> _Box:
    begin = left + _GAP if position.align == "left" else left - _GAP - length
    middle = top + position.rise - _TEXT_LINE / 4
    return _Box(begin, begin + length, middle - _TEXT_LINE / 2, middle + _TEXT_LINE / 2)


def _rescale(value: float, begin: float, end: float, low: float, high: float) -> float:
    return low + (high - low) * ((value - begin) / (end - begin) if begin != end else 0.5)


def short_names(labels: Sequence[str], longest: int) -> list[str]:
    """Return the names that stand beside points; the tooltip and the legend have the whole labels.

    Labels of one method that are too long leave out the words that they share, and then the rest that does
    not fit. A name that would then stand beside several points tells nothing and is left out.
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
    common = set(words[1:]).intersection(*family) if len(family) > 1 else set[str]()
    return [word for word in words if word not in common]


def _fitting(words: Sequence[str], longest: int) -> str:
    """Return as many words as fit, one at least."""
    for count in range(1, len(words)):
        if len(" ".join(words[: count + 1])) > longest:
            return " ".join([*words[:count], "…"])
    return " ".join(words)
