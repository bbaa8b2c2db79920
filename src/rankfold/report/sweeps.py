"""Charts of a swept setting: results that differ in one number alone, such as r, k or a learning rate."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from rankfold.report.chart_style import (
    SOFT,
    Axis,
    Figure,
    Spec,
    Style,
    interval_layer,
    level_layers,
    page_spec,
    score_fields,
    style_encodings,
    style_of,
)
from rankfold.report.format import capital, metric_name
from rankfold.report.results import Result, Settings
from rankfold.report.study import Study
from rankfold.runs.records import differing, label_of

_FEWEST = 3

# A setting whose largest value is as many times its smallest is drawn on a logarithmic axis.
_WIDE_SPAN = 8

_MOST_TICKS = 10

# Lines stand a few pixels beside each other, so that their intervals do not cover each other.
_SHIFT = 5
_BESIDE: Spec = {"xOffset": {"expr": "datum.shift"}}


@dataclass(frozen=True, slots=True)
class Line:
    """Results of one method that differ in one setting alone.

    Attributes:
        label: The method, with the other settings that tell it from other lines.
        points: The setting's value and the result, in rising order.
    """

    label: str
    points: tuple[tuple[float, Result], ...]


def find_sweeps(results: Sequence[Result]) -> dict[str, tuple[Line, ...]]:
    """Return the settings that were varied alone, each with its lines of at least three results."""
    scored = [result for result in results if result.score]
    names = dict.fromkeys(
        name for result in scored for name, value in result.settings.items() if _is_number(value)
    )
    sweeps = {name: _lines(name, scored) for name in names}
    return {name: lines for name, lines in sweeps.items() if lines}


def sweep_figures(study: Study) -> list[Figure]:
    """Return a chart of the metric against each swept setting."""
    sweeps = find_sweeps(study.results)
    # Two stand side by side; the last of an odd number has the line for itself.
    alone = len(sweeps) if len(sweeps) % 2 else 0
    return [
        _figure(study, name, lines, width="wide" if number == alone else "half")
        for number, (name, lines) in enumerate(sweeps.items(), start=1)
    ]


def _lines(setting: str, results: Sequence[Result]) -> tuple[Line, ...]:
    groups: dict[str, dict[float, Result]] = {}
    for result in results:
        value = result.settings.get(setting)
        if _is_number(value):
            key = json.dumps([result.method, _without(result.settings, setting)], sort_keys=True)
            groups.setdefault(key, {}).setdefault(float(str(value)), result)
    long = [sorted(group.items()) for group in groups.values() if len(group) >= _FEWEST]
    labels = _labels([points[0][1] for points in long], setting)
    return tuple(Line(label, tuple(points)) for label, points in zip(labels, long, strict=True))


def _labels(firsts: Sequence[Result], setting: str) -> list[str]:
    """Return a label for each line, by its first result: the method with its other settings."""
    lines = [(result.method, _without(result.settings, setting)) for result in firsts]
    return [
        label_of(method, settings, differing([others for name, others in lines if name == method]))
        for method, settings in lines
    ]


def _without(settings: Settings, setting: str) -> Settings:
    return {name: value for name, value in settings.items() if name != setting}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(study: Study, setting: str, lines: Sequence[Line], *, width: Literal["half", "wide"]) -> Figure:
    metric = metric_name(study.metric)
    styles = {line.label: style_of(number) for number, line in enumerate(lines, start=1)}
    values = sorted({value for line in lines for value, _ in line.points})
    labels = {result.label for line in lines for _, result in line.points}
    first = study.results[0]
    reference = first if first.score and first.label not in labels else None
    against = f" The dotted line is {first.label} with its interval." if reference else ""
    beside = " Methods stand a little beside each other." if len(lines) > 1 else ""
    spec = _chart(lines, styles, reference, x=_axis(setting, values), y=Axis("value", metric))
    return Figure(
        f"sweep-{setting.replace('.', '-')}",
        f"{capital(metric)} against {setting.replace('_', ' ')}",
        f"Methods that differ in nothing else; the whiskers are their intervals.{beside}{against}",
        spec,
        width,
        key=styles,
    )


def _axis(setting: str, values: Sequence[float]) -> Axis:
    is_wide = values[0] > 0 and values[-1] / values[0] >= _WIDE_SPAN
    title = setting.replace("_", " ") + (" (logarithmic)" if is_wide else "")
    ticks = tuple(values) if len(values) <= _MOST_TICKS else ()
    return Axis("setting", title, ".6~g", "log" if is_wide else "linear", ticks)


def _chart(
    lines: Sequence[Line], styles: Mapping[str, Style], reference: Result | None, *, x: Axis, y: Axis
) -> Spec:
    """Return one line per method with intervals, and the reference as a band behind them."""
    base = alt.Chart().encode(x=x.x(), y=y.y(), **style_encodings(styles, "color", field="line"))
    tooltip = [
        alt.Tooltip("method", type="nominal"),
        alt.Tooltip("score", type="nominal", title=y.title),
    ]
    layers = [
        base.mark_line(strokeWidth=1.8, **_BESIDE).encode(
            **style_encodings(styles, "strokeDash", field="line")
        ),
        interval_layer(x.x(), y, styles, field="line", **_BESIDE),
        base.mark_point(filled=True, size=90, opacity=1, **_BESIDE).encode(
            tooltip=tooltip, **style_encodings(styles, "shape", field="line")
        ),
    ]
    if reference and (score := reference.score):
        band = alt.Chart(alt.Data(values=[{}])).mark_rect(color=SOFT, opacity=0.1)
        band = band.encode(y=alt.datum(score.low), y2=alt.datum(score.high))
        layers = [band, *layers, *level_layers(score.value, reference.label)]
    return page_spec(layers, list(_rows(lines)), height=280)


def _rows(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """Yield a row for each point; `shift` moves the lines apart."""
    for number, line in enumerate(lines):
        shift = _SHIFT * (number - (len(lines) - 1) / 2)
        for value, result in line.points:
            if result.score:
                row = {"method": result.label, "line": line.label, "setting": value, "shift": shift}
                yield row | score_fields(result.score)
