"""What a method costs and gives: the front, and names that do not cover each other."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from rankfold.report.chart_style import style_of
from rankfold.report.study import make_studies
from rankfold.report.trade_off import NamePosition, is_on_front, place_names, short_names, trade_off_figures
from rankfold.tasks.metrics import ANSWER_LOSS
from tests.support.records import make_record

POINTS = some.lists(some.tuples(some.integers(1, 9), some.integers(0, 9)), min_size=1, max_size=12)


def styles_of(study):
    return {row.label: style_of(index) for index, row in enumerate(study.results)}


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), (ANSWER_LOSS, -1)])
@given(POINTS)
def test_front_holds_what_nothing_else_beats(metric, sign, pairs):
    points = [{"cost": cost, "value": sign * value} for cost, value in pairs]
    front = [point for point in points if is_on_front(point, points, metric)]
    assert front
    for one, other in combinations(front, 2):
        assert sign * (one["cost"] - other["cost"]) * (one["value"] - other["value"]) > 0 or one == other
    for point in points:
        assert any(
            best["cost"] <= point["cost"] and sign * best["value"] >= sign * point["value"] for best in front
        )


def test_costs_are_bytes_and_trainable_numbers():
    records = [make_record(name, size=size, examples=40) for name, size in (("lora", 400), ("tlora", 4000))]
    (study,) = make_studies(records)
    by_bytes, by_numbers = (
        chart.spec["data"]["values"] for chart in trade_off_figures(study, styles_of(study))
    )
    assert [point["cost"] for point in by_bytes] == [record.bytes.weights_file for record in records]
    assert [point["cost"] for point in by_numbers] == [100, 1000]


@pytest.mark.parametrize(("metric", "better"), [("accuracy", "up"), (ANSWER_LOSS, "down")])
def test_caption_and_front_say_where_better_is(metric, better):
    records = [
        replace(record, task=replace(record.task, metric=metric), metrics={metric: value}, predictions=())
        for record, value in ((make_record("lora", size=400), 2.0), (make_record("tlora", size=4000), 1.0))
    ]
    (study,) = make_studies(records)
    chart, _ = trade_off_figures(study, styles_of(study))
    assert f"further {better} is better" in chart.caption
    larger = chart.spec["data"]["values"][1]
    assert larger["front"] == (better == "down")


def test_a_method_that_trains_nothing_has_no_place_on_a_logarithmic_axis():
    (study,) = make_studies([make_record("lora", size=0, examples=40)])
    chart = trade_off_figures(study, {"lora": style_of(0)})[1]
    assert chart.rows == []


def test_names_stand_inside_and_one_without_room_is_left_out():
    first, *middle, last = place_names(["a_long_name"] * 7, [0, *[1] * 5, 2], [1] * 7, ends=(0, 2), width=440)
    assert first == NamePosition("left", -9)
    assert last is not None
    assert last.align == "right"
    assert [place is None for place in middle] == [False] * 4 + [True]


@pytest.mark.parametrize("count", [0, 1], ids=["none", "one"])
def test_few_names_are_placed_without_a_range(count):
    assert len(place_names(["a"] * count, [1.0] * count, [1.0] * count, ends=(1, 1), width=440)) == count


def test_long_names_of_a_method_leave_out_what_they_share():
    shared = "reducer=on reducer.select=importance"
    long = [f"effilora {shared} reducer.active_fraction={share}" for share in (0.25, 0.5)]
    assert short_names(["lora r=8", *long], 44) == [
        "lora r=8",
        "effilora reducer.active_fraction=0.25",
        "effilora reducer.active_fraction=0.5",
    ]
    assert short_names([*long, f"lora {shared}"], 28) == ["", "", "lora reducer=on …"]


@given(
    some.lists(
        some.lists(some.sampled_from(["r=8", "k=16", "map=row_major", "heads=4"]), unique=True).map(tuple),
        unique=True,
    )
)
def test_names_beside_points_fit_and_tell_them_apart(knobs):
    labels = [" ".join(["relayed_lora", *words]) for words in knobs]
    names = short_names(labels, 28)
    told = [name for name in names if name]
    assert len(set(told)) == len(told)
    for label, name in zip(labels, names, strict=True):
        assert len(name.removesuffix(" …")) <= 28
        assert set(name.removesuffix(" …").split()) <= set(label.split())
