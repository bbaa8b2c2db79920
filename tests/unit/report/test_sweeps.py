"""Charts of a swept setting: which rows make a line, and how its axis is drawn."""

import pytest
import vl_convert

from rankfold.report.study import make_studies
from rankfold.report.sweeps import find_sweeps, sweep_figures
from tests.support.records import make_record


def study_of(*options, **more):
    records = [make_record(method, options=each, examples=40, **more) for method, each in options]
    return make_studies(records)[0]


def swept(method, setting, values, **fixed):
    return [(method, {**fixed, setting: value}) for value in values]


def test_rows_that_differ_in_one_number_are_a_line_in_rising_order():
    study = study_of(*swept("relayed_lora", "k", (16, 4, 8), r=64), ("lora", {"r": 8}))
    (setting,) = find_sweeps(study.results)
    (line,) = find_sweeps(study.results)[setting]
    assert (setting, line.label) == ("k", "relayed_lora")
    assert [value for value, _ in line.points] == [4, 8, 16]
    assert [row.label for _, row in line.points] == [f"relayed_lora k={k}" for k in (4, 8, 16)]


@pytest.mark.parametrize(
    "options",
    [
        swept("lora", "r", (8, 16)),
        [("lora", {"r": r, "alpha": 2 * r}) for r in (4, 8, 16)],
        swept("lora", "use_rslora", (True, False)),
        swept("lora", "init", ("a", "b", "c")),
    ],
    ids=["two rows", "two settings at once", "switches", "words"],
)
def test_other_rows_are_no_line(options):
    assert find_sweeps(study_of(*options).results) == {}


def test_a_grid_has_a_line_for_each_value_of_the_other_setting():
    grid = [("relayed_lora", {"r": r, "k": k}) for r in (8, 16, 32) for k in (2, 4, 8)]
    sweeps = find_sweeps(study_of(*grid).results)
    assert [line.label for line in sweeps["k"]] == [f"relayed_lora r={r}" for r in (8, 16, 32)]
    assert [line.label for line in sweeps["r"]] == [f"relayed_lora k={k}" for k in (2, 4, 8)]


def test_methods_that_share_a_setting_are_in_one_chart():
    study = study_of(*swept("lora", "r", (2, 4, 8)), *swept("tlora", "r", (2, 4, 8)))
    (figure,) = sweep_figures(study)
    assert list(figure.key) == ["lora", "tlora"]
    assert len({style.shape for style in figure.key.values()}) == 2


@pytest.mark.parametrize(
    ("values", "scale"),
    [((4, 8, 32), "log"), ((1, 2, 4), "linear"), ((0, 8, 64), "linear"), ((0.25, 0.5, 2.0), "log")],
    ids=["wide", "narrow", "with zero", "fractions"],
)
def test_axis_is_logarithmic_where_values_span_eightfold(values, scale):
    (figure,) = sweep_figures(study_of(*swept("lora", "r", values)))
    assert figure.spec["layer"][0]["encoding"]["x"]["scale"]["type"] == scale


def test_chart_has_intervals_and_the_reference_and_is_drawn():
    study = study_of(("lora", {"r": 8}), *swept("relayed_lora", "k", (4, 8, 16), r=64))
    (figure,) = sweep_figures(study)
    assert "The dotted line is lora" in figure.caption
    assert all(row["low"] < row["value"] < row["high"] for row in figure.spec["data"]["values"])
    drawn = vl_convert.vegalite_to_svg({**figure.spec, "width": 400, "autosize": "pad"})
    assert ">lora</text>" in drawn


def test_ticks_say_the_values_and_nothing_rounder():
    (figure,) = sweep_figures(study_of(*swept("effilora", "share", (0.25, 0.5, 0.75))))
    drawn = vl_convert.vegalite_to_svg({**figure.spec, "width": 400, "autosize": "pad"})
    assert all(f">{value}</text>" in drawn for value in ("0.25", "0.5", "0.75"))


def test_learning_rates_that_were_swept_have_a_chart():
    records = [make_record(learning_rate=rate, examples=40) for rate in (1e-4, 1e-3, 1e-2)]
    assert list(find_sweeps(make_studies(records)[0].results)) == ["learning_rate"]
