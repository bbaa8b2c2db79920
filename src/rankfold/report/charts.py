"""Charts of what happened during the training: curves over steps, and a heat map of layers."""

from collections.abc import Mapping, Sequence

from rankfold.report.chart_parts import Axis, Mark, Spec, axis_of, by, chart, encoded, level

# With more methods than these their ranges over seeds would only hide each other.
MOST_BANDS = 8


def curves(
    rows: Sequence[Mapping[str, object]],
    marks: Mapping[str, Mark],
    *,
    x: Axis,
    y: Axis,
    line: tuple[float, str] | None = None,
) -> Spec:
    """Return one line per method, with the range over its seeds as a band and markers where points are few.

    Args:
        rows: Rows with `method`, the fields of `x` and `y`, and `low` and `high` over seeds.
        marks: The look of each method.
        x: Horizontal quantity.
        y: Vertical quantity.
        line: A horizontal line for comparison and its name.
    """
    horizontal, vertical = encoded(x), encoded(y)
    tooltip = [
        {"field": "method"},
        {"field": x.field, "title": x.title, "type": "quantitative"},
        {"field": y.field, "title": y.title, "type": "quantitative", "format": ".4f"},
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "area", "opacity": 0.14},
            "encoding": {"x": horizontal, "y": {**vertical, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {"x": horizontal, "y": vertical, "strokeDash": by("dash", marks)},
        },
        {
            # Large and invisible: something to point at for the exact values.
            "mark": {"type": "point", "size": 160, "opacity": 0},
            "encoding": {"x": horizontal, "y": vertical, "tooltip": tooltip},
        },
    ]
    if len(marks) > MOST_BANDS:
        del layers[0]
    if len(rows) <= 12 * max(len(marks), 1):
        layers.append(
            {
                "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                "encoding": {
                    "x": horizontal,
                    "y": vertical,
                    "shape": by("shape", marks),
                    "tooltip": tooltip,
                },
            }
        )
    for layer in layers:
        layer["encoding"]["color"] = by("colour", marks)
    if line:
        layers.append(level(*line))
    return chart({"layer": layers, "data": {"values": list(rows)}}, height=280)


def heat_map(
    cells: Sequence[Mapping[str, object]],
    layers: Sequence[str],
    *,
    x: Axis,
    colour: Axis,
    is_signed: bool,
) -> Spec:
    """Return layers as rows, the output's on top, and spans of steps as columns, by colour.

    Args:
        cells: Rows with `method`, `layer`, the field of `x` and `from`, where its span begins, `importance`
            and `trained`.
        layers: From the input to the output.
        x: Horizontal quantity.
        colour: What is shown.
        is_signed: Whether 0 is a middle, with a colour for each side, or the least.
    """
    most = max((abs(float(str(cell[colour.field]))) for cell in cells), default=0.0) or 1.0
    scale: Spec = (
        {"scheme": "blueorange", "domain": [-most, most]}
        if is_signed
        else {"scheme": "blues", "domain": [0, 1]}
    )
    begin = {"field": "from", "type": "quantitative", "scale": {"nice": False}, "axis": axis_of(x)}
    body: Spec = {
        "mark": {"type": "rect"},
        "encoding": {
            "x": begin,
            "x2": {"field": x.field},
            "y": {
                "field": "layer",
                "type": "nominal",
                "sort": list(reversed(layers)),
                "title": None,
                "axis": {"ticks": False, "domain": False},
            },
            "color": {
                "field": colour.field,
                "type": "quantitative",
                "scale": scale,
                "legend": {
                    "title": colour.title,
                    "titleColor": "var(--soft)",
                    "labelColor": "var(--soft)",
                    "titleFontWeight": "normal",
                },
            },
            "tooltip": [
                {"field": "layer"},
                {"field": x.field, "title": x.title},
                {"field": "importance", "format": ".3f"},
                {"field": "trained", "title": "share of steps", "format": ".0%"},
            ],
        },
        "data": {"values": list(cells)},
    }
    return chart(body, height=max(120, 20 * len(layers)))
