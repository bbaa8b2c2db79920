"""The page is complete, opens offline, and shows a user's text as text."""

import csv
import html
import io
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
import vl_convert

from rankfold.bench.statistics.comparison import Difference, Interval
from rankfold.bench.statistics.confidence import MeanEstimate
from rankfold.errors import DataError, RankfoldError
from rankfold.report.chart_style import style_of
from rankfold.report.charts import study_figures
from rankfold.report.findings import READING, headline
from rankfold.report.format import bytes_text, range_text, seconds_text, signed_text
from rankfold.report.study import make_report
from rankfold.report.tables import cells, columns, settings_cells, settings_text
from rankfold.report.write import comma_separated, html_page, markdown, write_report
from rankfold.runs.record import ParametersInfo
from rankfold.runs.records import find_records
from tests.support.records import fail, make_record

HOSTILE = "</script><script>alert(1)</script>"


@cache
def some_report():
    names = ("lora", "relayed_lora", "tlora")
    records = [
        make_record(name, seed=seed, size=90_000 * (i + 1)) for i, name in enumerate(names) for seed in (0, 1)
    ]
    records += [fail(make_record("lora_fa"))]
    records += [make_record(name, kind="regression", task="stsb", quality=0.8) for name in names]
    return make_report(records)


@cache
def hostile_report():
    records = [
        make_record(HOSTILE, options={HOSTILE: HOSTILE}, task=HOSTILE, model=HOSTILE),
        fail(make_record("lora", task=HOSTILE, model=HOSTILE), HOSTILE),
    ]
    return make_report(records)


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and the text of JSON scripts."""

    def __init__(self, page):
        super().__init__()
        self.found, self.specs, self.inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.found.append((tag, attributes))
        self.inside = tag == "script" and attributes.get("type") == "application/json"

    def handle_data(self, data):
        if self.inside:
            self.specs.append(json.loads(data))
            self.inside = False


@pytest.fixture(scope="module")
def page():
    return html_page(some_report(), version="1.2.3")


def test_page_loads_nothing(page):
    for tag, attributes in Elements(page).found:
        assert tag not in ("link", "img", "iframe", "object") or attributes.get("href", "").startswith(
            "data:"
        )
        assert "src" not in attributes


def test_page_is_smaller_than_a_megabyte_and_a_half(page):
    assert len(page.encode()) < 1_500_000


def test_page_has_a_row_per_method_in_each_study_and_in_the_overview(page):
    rows = [
        attributes
        for tag, attributes in Elements(page).found
        if tag == "th" and attributes.get("scope") == "row"
    ]
    results, settings = (4 + 1) + (3 + 1), 4 + 3
    assert len(rows) == 4 + results + settings


def test_every_chart_is_a_specification_that_vega_accepts(page):
    specs = Elements(page).specs
    assert len(specs) == 2 * 5
    for spec in specs:
        assert "<svg" in vl_convert.vegalite_to_svg({**spec, "width": 400, "autosize": "pad"})


def test_charts_leave_methods_that_have_no_results_out(page):
    for spec in Elements(page).specs:
        assert "lora_fa" not in {row["method"] for row in spec["data"]["values"]}


def test_charts_of_runs_without_curves_are_left_out():
    page = html_page(make_report([fail(make_record())]), version="1")
    assert Elements(page).specs == []


def test_what_was_measured_only_at_the_end_is_no_curve():
    record = make_record()
    once = replace(record, curve=replace(record.curve, validation=record.curve.validation[-1:]))
    drawn = {chart.name for chart in figures_of(record)}
    assert {"loss", "metric", "held"} <= drawn
    alone = [chart for chart in figures_of(once) if chart.name in {"loss", "metric", "held"}]
    assert [(chart.name, chart.width) for chart in alone] == [("loss", "wide")]


def figures_of(record):
    (study,) = make_report([record]).studies
    return study_figures(study, {row.label: style_of(place) for place, row in enumerate(study.results)})


def test_page_holds_every_run_with_its_command_and_hash(page):
    assert page.count("<summary><span>") == 6 + 1 + 3
    assert "rankfold train --model minilm --method relayed_lora --out run --task bbc_news --seed 1" in page
    assert "cdcdcdcdcdcdcdcd" in page


def test_text_of_the_user_is_never_markup():
    benign = Elements(html_page(make_report([make_record("a"), fail(make_record("lora"))]), version="1"))
    hostile = Elements(html_page(hostile_report(), version="1"))
    assert [tag for tag, _ in hostile.found].count("script") == [tag for tag, _ in benign.found].count(
        "script"
    )
    assert HOSTILE in json.dumps(hostile.specs)


def test_markdown_of_hostile_names_has_no_markup_and_whole_rows():
    text = markdown(hostile_report())
    assert "<script" not in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_csv_has_a_row_for_every_run():
    rows = list(csv.DictReader(io.StringIO(comma_separated(some_report()))))
    assert len(rows) == 6 + 1 + 3
    assert [row["status"] for row in rows].count("failed") == 1
    assert float(rows[0]["value"]) == make_record("lora").metrics["accuracy"]


def test_table_has_as_many_cells_as_columns():
    for study in some_report().studies:
        assert {len(row) for row in cells(study)} == {len(columns(study))}


def test_headline_names_every_method_that_was_compared():
    study = some_report().studies[0]
    text = " ".join(headline(study))
    assert all(row.label in text for row in study.results)


def test_marks_of_neighbours_differ_in_colour_shape_and_dash():
    for index in range(12):
        first, second = style_of(index), style_of(index + 1)
        assert first.colour != second.colour
        assert first.shape != second.shape
        assert first.dash != second.dash
    assert len({(style_of(i).colour, style_of(i).shape, style_of(i).dash) for i in range(35)}) == 35


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(999), "999 B"),
        (bytes_text(999.6), "1.0 kB"),
        (bytes_text(999_960), "1.0 MB"),
        (seconds_text(9.96), "10 s"),
        (seconds_text(59.7), "1 min 00 s"),
        (seconds_text(3600), "1 h 00 min"),
        (signed_text(-0.0004), "0.000"),
        (signed_text(-0.012), "−0.012"),
        (range_text(Interval(1, 1, 1)), ""),
        (range_text(Interval(0, -0.02, 0.028)), "[−0.020, 0.028]"),
    ],
)
def test_numbers_are_rounded_into_the_next_unit(text, expected):
    assert text == expected


def test_report_is_written_from_the_folders_that_hold_records(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "deep" / f"lora-seed{seed}"
        folder.mkdir(parents=True)
        make_record(seed=seed).write(folder)
    hidden = tmp_path / ".unfinished"
    hidden.mkdir()
    make_record("tlora").write(hidden)
    records = find_records(tmp_path)
    assert records == [make_record(seed=seed) for seed in (0, 1)]
    write_report(make_report(records), tmp_path / "out", version="1")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "records.csv"}


def test_folder_without_records_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no run\.json"):
        find_records(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        find_records(tmp_path / "absent")


def test_damaged_record_is_refused_with_its_path(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RankfoldError, match=r"run\.json"):
        find_records(tmp_path)


def test_headline_of_many_methods_is_short():
    names = ["lora", *(f"tlora_{number}" for number in range(8))]
    records = [make_record(name, quality=0.95 if name == "lora" else 0.3, examples=60) for name in names]
    (study,) = make_report(records).studies
    assert headline(study)[0].startswith("8 of the 8 other methods are worse than lora in accuracy, by 0.")


def _rows_of(study, *, verdict, low, high):
    first, *others = study.results
    error = (high - low) / 4
    clear = Difference(MeanEstimate((low + high) / 2, 1000, 10_000, error, 0.0, error))
    return replace(
        study, results=(first, *(replace(row, difference=clear, verdict=verdict) for row in others))
    )


@pytest.mark.parametrize(
    ("verdict", "low", "high", "is_told"),
    [
        ("not separated", 0.01, 0.03, True),
        ("not separated", -0.03, -0.01, True),
        ("not separated", -0.01, 0.03, False),
        ("better", 0.01, 0.03, False),
    ],
)
def test_interval_that_is_clear_only_alone_is_told(verdict, low, high, is_told):
    study = _rows_of(some_report().studies[0], verdict=verdict, low=low, high=high)
    assert any("would be clear of zero" in sentence for sentence in headline(study)) is is_told


def test_settings_of_a_row_and_those_of_all_rows_are_told_once_each():
    records = [
        make_record("lora", options={"r": 8, "target_modules": ["query"]}),
        make_record("tlora", options={"r": 8, "target_modules": "all-linear"}, steps=50),
    ]
    (study,) = make_report(records).studies
    assert settings_text(study).startswith("All methods: r=8, learning_rate=0.0005, batch_size=16")
    assert settings_cells(study) == [
        ["lora", "target_modules=query, steps=100"],
        ["tlora", "target_modules=all-linear, steps=50"],
    ]
    (alone,) = make_report(records[:1]).studies
    assert settings_text(alone).startswith("lora: r=8, target_modules=query")
    assert settings_cells(alone) == []


@pytest.mark.parametrize("written", [markdown, lambda report: html_page(report, version="1")])
def test_report_says_settings_and_how_to_read_it(written):
    text = html.unescape(written(some_report()))
    assert "All methods: " in text
    assert all(part.split(";")[0] in text for part in READING)


def test_method_that_learned_nothing_is_named_and_not_praised_for_its_file():
    lora, blind = make_record(size=90_000), make_record("tlora", size=9_000, quality=0.0)
    blind = replace(blind, predictions=tuple(replace(item, prediction=2) for item in blind.predictions))
    (study,) = make_report([lora, blind]).studies
    sentences = headline(study)
    assert not [line for line in sentences if "smallest" in line]
    (sentence,) = [line for line in sentences if line.startswith("tlora, 1 of 1 runs: ")]
    assert "predicts 'politics' for each of the 445 held-out rows" in sentence


def test_a_head_alone_has_no_smallest_file():
    lora, tlora = make_record(size=90_000), make_record("tlora", size=9_000)
    head = replace(make_record("head_only", size=900), parameters=ParametersInfo(0, 0, 0, 9))
    (study,) = make_report([lora, tlora, head]).studies
    (sentence,) = [line for line in headline(study) if "smallest" in line]
    assert sentence.startswith("tlora has the smallest file")


def test_settings_of_a_label_are_set_smaller_and_a_long_one_heads_no_column():
    records = [make_record("lora", options={"a_very_long_option": r}, examples=60) for r in (8, 16)]
    page = html_page(make_report(records), version="1")
    assert "lora <small>a_very_long_option=16</small>" in page
    assert "difference to the reference" in page


def test_page_does_not_grow_with_the_number_of_predictions():
    few, many = (html_page(make_report([make_record(examples=n)]), version="1") for n in (100, 5000))
    assert abs(len(few) - len(many)) < 200
