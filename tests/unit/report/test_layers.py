"""The heat map of layers: what each cell says, and that it is there only for runs with a Reducer."""

from dataclasses import replace
from itertools import pairwise

import pytest

from rankfold.report.charts import layer_cells, layer_figures
from rankfold.report.study import make_studies
from rankfold.runs.record import ReducerInfo, ReducerPoint
from tests.support.records import make_record

LAYERS = ("layer.0", "layer.1")


def part(steps, *, importance=0.5, active=(1, 0)):
    """Return what a Reducer records: importance as given, and each layer in a share of the steps."""
    points = (
        ReducerPoint(step, (importance, -importance), tuple(step * share for share in active))
        for step in steps
    )
    return ReducerInfo({"active_fraction": 0.5}, LAYERS, tuple(points))


def reduced(seed=0, **options):
    return replace(make_record(seed=seed), reducer=part(range(10, 50, 10), **options))


def test_each_cell_is_a_layer_in_a_span_of_steps():
    cells = layer_cells("lora", [part([10, 20])])
    assert [(cell["layer"], cell["from"], cell["step"]) for cell in cells] == [
        ("layer.0", 0, 10),
        ("layer.1", 0, 10),
        ("layer.0", 10, 20),
        ("layer.1", 10, 20),
    ]
    assert [cell["trained"] for cell in cells] == [1, 0, 1, 0]
    assert [cell["importance"] for cell in cells] == [0.5, -0.5, 0.5, -0.5]


def test_cells_are_means_over_seeds_at_the_steps_that_all_have():
    cells = layer_cells("lora", [part([10, 20]), part([10], importance=0.1, active=(0, 1))])
    assert [cell["step"] for cell in cells] == [10, 10]
    assert [cell["trained"] for cell in cells] == [0.5, 0.5]
    assert cells[0]["importance"] == pytest.approx(0.3)


def test_a_long_run_has_a_readable_number_of_columns_that_covers_all_steps():
    cells = layer_cells("lora", [part(range(10, 5010, 10))])
    spans = [(cell["from"], cell["step"]) for cell in cells[::2]]
    assert len(spans) == 60
    assert spans[0][0] == 0
    assert spans[-1][1] == 5000
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert {cell["trained"] for cell in cells} == {0, 1}


def test_only_methods_with_a_reducer_have_a_heat_map():
    study = make_studies([make_record("tlora"), reduced()])[0]
    figures = layer_figures(study)
    assert [figure.title for figure in figures] == ["Importance of the layers"]
    assert figures[0].spec["layer"][0]["encoding"]["y"]["sort"] == ["layer.1", "layer.0"]


def test_a_run_without_probes_shows_which_layers_trained():
    figure = layer_figures(make_studies([reduced(importance=0.0)])[0])[0]
    assert figure.title == "Layers that trained"
    assert figure.spec["layer"][0]["encoding"]["color"]["field"] == "trained"


def test_a_reducer_makes_another_row_of_a_method():
    study = make_studies([make_record(), reduced()])[0]
    assert [row.label for row in study.results] == ["lora", "lora reducer=on reducer.active_fraction=0.5"]
