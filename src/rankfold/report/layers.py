"""Which layers a Reducer trained: a heat map of steps by layers for each method that ran with one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rankfold.report.chart_parts import Axis, figure
from rankfold.report.charts import heat_map
from rankfold.report.rows import Row
from rankfold.report.study import Study
from rankfold.runs.record import ReducerPart

_MOST_COLUMNS = 60

_IMPORTANCE = (
    "Importance of the layers",
    Axis("importance", "importance"),
    "what the probes found; the higher, the more often a layer trains.",
)
_TRAINED = (
    "Layers that trained",
    Axis("trained", "share of steps"),
    "the share of the steps in which each layer trained.",
)

Cells = list[dict[str, Any]]


def layer_figures(study: Study) -> list[dict[str, Any]]:
    """Return the heat maps of a study as the template wants them; none for methods without a Reducer."""
    found = ((row, _parts(row)) for row in study.rows)
    return [_figure(number, row, parts) for number, (row, parts) in enumerate(found, start=1) if parts]


def _parts(row: Row) -> list[ReducerPart]:
    """Return what the Reducers of a method's seeds recorded, if all of them recorded something."""
    parts = [run.reducer for run in row.records if run.reducer is not None and run.reducer.history]
    return parts if len(parts) == len(row.records) else []


def _figure(number: int, row: Row, parts: Sequence[ReducerPart]) -> dict[str, Any]:
    cells = layer_cells(row.label, parts)
    is_measured = any(cell["importance"] for cell in cells)
    title, colour, meaning = _IMPORTANCE if is_measured else _TRAINED
    mean = f" Mean of {len(parts)} seeds." if len(parts) > 1 else ""
    step = Axis("step", "training step", "~s")
    return figure(
        f"layers-{number}",
        title,
        f"{row.label}: {meaning}{mean}",
        heat_map(cells, parts[0].layers, x=step, colour=colour, is_signed=is_measured),
        width="wide",
    )


def layer_cells(label: str, parts: Sequence[ReducerPart]) -> Cells:
    """Return one cell for each layer and span of steps, the mean over seeds.

    Args:
        label: The method's name.
        parts: What its seeds recorded; of the steps, those that all of them have are shown.
    """
    seeds = [{point.step: point for point in part.history} for part in parts]
    steps = [step for step in seeds[0] if all(step in seed for seed in seeds)]
    picked = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_COLUMNS)).round().astype(int))
    cells: Cells = []
    before, counts = 0, np.zeros(len(parts[0].layers))
    for step in [steps[int(index)] for index in picked]:
        points = [seed[step] for seed in seeds]
        importance = np.mean([point.importance for point in points], axis=0)
        trained = np.mean([point.trained for point in points], axis=0)
        shares = (trained - counts) / (step - before)
        cells += [
            {
                "method": label,
                "layer": layer,
                "from": before,
                "step": step,
                "importance": round(float(value), 4),
                "trained": round(float(share), 4),
            }
            for layer, value, share in zip(parts[0].layers, importance, shares, strict=True)
        ]
        before, counts = step, trained
    return cells
