"""How a composition was chosen, told from the records alone."""

import csv
import io
from dataclasses import replace

import pytest

from rankfold.cli.results import report_as_json
from rankfold.report.findings import headline
from rankfold.report.selection import CHOSEN, choice_cells, choice_columns, choice_text, make_choices
from rankfold.report.study import Report, make_studies
from rankfold.report.write import comma_separated, html_page, markdown
from rankfold.runs.record import FitInfo
from tests.support.records import fail, make_record

STEPS = (10, 30)
QUALITY = {"lora": 0.95, "tlora": 0.9, "lora_fa": 0.6, "share_lora": 0.55, "effilora": 0.5}


def run_of(method, rung, kept, *, role="candidate", quality=None, **more):
    record = make_record(method, steps=STEPS[rung - 1], quality=quality or QUALITY[method], **more)
    return replace(record, fit=FitInfo("60,000 trained numbers", STEPS, rung, kept, role=role))


@pytest.fixture
def records():
    first = [run_of(method, 1, 2) for method in QUALITY]
    first[-1] = replace(fail(first[-1]), fit=first[-1].fit)
    last = [run_of(method, 2, 1) for method in ("lora", "tlora")]
    return [*first, *last, run_of("peft:lora", 2, 1, role="reference", quality=0.93)]


@pytest.fixture
def study(records):
    (study,) = make_studies(records)
    return study


def test_every_composition_has_its_outcome_and_the_chosen_one_is_first(study):
    (choice,) = study.choices
    assert [each.label for each in choice.contenders] == [f"{name} r=8" for name in QUALITY]
    outcomes = [each.outcome for each in choice.contenders]
    assert outcomes[0] == CHOSEN
    assert outcomes[1:4] == [
        "dropped in rung 2, place 2 of 2",
        "dropped in rung 1, place 3 of 5",
        "dropped in rung 1, place 4 of 5",
    ]
    assert outcomes[4].startswith("failed in rung 1: the loss is not a number at step 12")


def test_only_the_last_rung_is_compared_with_the_reference_first(study):
    assert [row.label for row in study.results] == ["peft:lora", "lora", "tlora"]
    assert study.results[0].verdict == "reference"
    assert {run.training.steps for row in study.results for run in row.records} == {30}


def test_every_run_is_in_the_study(study, records):
    assert sorted(map(id, study.records)) == sorted(map(id, records))


def test_order_of_the_records_changes_nothing(records, study):
    (other,) = make_studies(records[::-1])
    assert [row.label for row in other.results] == [row.label for row in study.results]
    assert choice_cells(other.choices[0]) == choice_cells(study.choices[0])


def test_finding_says_what_was_chosen_and_that_its_rows_flatter_it(study):
    first = headline(study)[0]
    assert first.startswith("lora r=8 was chosen of 5 compositions")
    assert "flatters" in first


def test_score_of_each_rung_has_its_doubt(study):
    (choice,) = study.choices
    heads, cells = choice_columns(choice), choice_cells(choice)
    assert heads == ["composition", "trainable", "rung 1: 10 steps", "rung 2: 30 steps", "outcome"]
    assert all(len(row) == len(heads) for row in cells)
    assert all("[" in text for text in (cells[0][2], cells[0][3], cells[2][2]))
    assert cells[2][3] == ""
    assert cells[4][1:3] == ["–", "failed"]


def test_rung_that_was_too_short_is_said_to_be(study):
    assert "says little" not in choice_text(study.choices[0])
    short = [run_of(method, 1, 1, quality=0.2) for method in QUALITY]
    (choice,) = make_choices(short)
    assert "In the rung of 10 steps 5 of 5 were not separated from guessing" in choice_text(choice)


def test_tie_says_what_told_the_two_apart():
    # The same predictions, of which the second run is told apart by its loss.
    lower, higher = run_of("lora", 2, 1), run_of("lora", 2, 1, options={"r": 4})
    higher = replace(higher, curve=replace(higher.curve, validation=({"step": 1, "loss": 9.0},)))
    (choice,) = make_choices([higher, lower])
    assert [each.outcome for each in choice.contenders] == [
        CHOSEN,
        "dropped in rung 2, place 2 of 2, by loss at equal accuracy",
    ]


def test_choices_of_two_seeds_are_two(records):
    others = [replace(each, training=replace(each.training, seed=1)) for each in records]
    alone, *two = [*make_choices(records), *make_choices([*records, *others])]
    assert [choice_cells(each) for each in two] == [choice_cells(alone)] * 2
    assert all(len(row) == len(choice_columns(alone)) for row in choice_cells(alone))


def test_choice_that_was_stopped_shows_how_far_it_came(records):
    (study,) = make_studies(records[:5])
    assert [row.label for row in study.results] == list(QUALITY)
    (choice,) = study.choices
    assert [each.outcome for each in choice.contenders[:2]] == ["went on from rung 1"] * 2


def test_runs_of_no_choice_have_none(records):
    assert make_choices([replace(record, fit=None) for record in records]) == ()


def test_page_markdown_csv_and_json_tell_the_choice(study):
    labels = [each.label for each in study.choices[0].contenders]
    report = Report((study,))
    page, text = html_page(report, version="0"), markdown(report)
    for shown in (page, text):
        assert "How the composition was chosen" in shown
        assert "60,000 trained numbers" in shown
        assert all(label in shown for label in labels)
    # The script of the page sorts what it calls results, by their buttons, which this table has not.
    assert page.count('class="results"') == 1
    rows = list(csv.DictReader(io.StringIO(comma_separated(report))))
    assert sorted(row["rung"] for row in rows) == ["1"] * 5 + ["2"] * 3
    (told,) = report_as_json(report)["studies"][0]["choices"]
    assert [each["label"] for each in told["compositions"]] == labels
    assert [len(each["scores"]) for each in told["compositions"]] == [2, 2, 1, 1, 1]
