"""A suite's records as a report: its claims, its order of rows, its labels, and how it was tuned."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from rankfold.bench.statistics.claims import Rules
from rankfold.bench.step_times import StepTime, write_step_times
from rankfold.bench.suites.saved_suite import save_suite
from rankfold.bench.suites.suite import Variant, runs_by_name
from rankfold.cli.results import report_as_json
from rankfold.errors import DataError
from rankfold.report.claims import SHAPES, claim_cells, claims_sentence, finding_cells
from rankfold.report.selection import tuning_cells
from rankfold.report.study import Report, make_report, make_studies
from rankfold.report.tables import cells, columns, overview_cells, overview_columns
from rankfold.report.write import comma_separated, html_page, markdown
from rankfold.runs.record import TuningInfo
from tests.support.records import make_record, with_request
from tests.support.suites import RATES, a_suite, records_of, write_suite

LABELS = ["lora", *(f"relayed_lora k={k}" for k in (4, 8, 16, 32)), "tlora"]


@pytest.fixture(scope="module")
def suite():
    return a_suite()


@pytest.fixture(scope="module")
def report(suite, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    save_suite(suite, folder)
    # Several runs at once end in any order.
    return make_report(records_of(suite)[::-1], folder)


def labels(study):
    return [row.label for row in study.results]


def tuned_record(method, rate, *, task="mrpc", **more):
    record = make_record(method, learning_rate=rate, task=task, examples=60, **more)
    return replace(record, tuning=TuningInfo(2, None, {"learning_rate": rate}, 0.9))


def test_rows_are_those_of_the_suite_in_its_order_whenever_they_ran(report):
    assert [study.task for study in report.studies] == ["mrpc", "sst2"]
    assert [labels(study) for study in report.studies] == [LABELS, LABELS]
    assert [study.results[0].verdict for study in report.studies] == ["reference"] * 2


def test_every_claim_has_a_verdict_with_a_shape_of_its_own(report):
    found = {each.claim.id: claim_cells(each)[1] for each in report.judgements}
    assert found == {"X1": "✓ supported", "X3": "✓ supported", "X18": "✗ contradicted", "X99": "○ not run"}
    assert len(set(SHAPES.values())) == len(SHAPES)


def test_claim_says_what_it_was_measured_on(report):
    first, second, *_, last = map(claim_cells, report.judgements)
    assert first[4:6] == ["2 of 2 supported", "minilm on mrpc and sst2 (accuracy), 4 seeds"]
    assert second[5] == "minilm on mrpc (accuracy), 4 seeds"
    assert last[4:] == ["0 of 2 supported", "–", "–"]
    assert 0 < float(first[6]) < 0.25


def test_numbers_behind_a_verdict_are_there_for_each_task(report):
    first, second, *_ = report.judgements
    rows = finding_cells(first)
    assert [row[0] for row in rows] == ["mrpc", "sst2"]
    assert all(row[1] == "relayed_lora k=32 − lora" and "[" in row[3] for row in rows)
    assert rows[0][4] == "above −0.250"
    assert finding_cells(second)[0][1] == "relayed_lora k=4 → k=8 → k=16 → k=32"


def test_mean_over_tasks_stands_before_its_tasks(suite, tmp_path):
    save_suite(replace(suite, rules=Rules(margin=0.05)), tmp_path)
    pooled = make_report(records_of(suite), tmp_path)
    rows = finding_cells(pooled.judgements[0])
    assert [row[0] for row in rows] == ["mean of 2 tasks", "mrpc", "sst2"]
    assert rows[0][-1] == "✓ supported: not inferior"
    assert {row[-1] for row in rows[1:]} == {"part of the mean"}
    assert float(rows[0][5]) > 0
    assert rows[1][5] == "–"
    assert "mean of 2 tasks" in html_page(pooled, version="1")
    assert "could show" in cells(pooled.studies[0])[1][3]


def test_sentence_counts_the_verdicts(report):
    assert claims_sentence(report.judgements) == "Claims: 2 supported, 1 contradicted and 1 not run."


def test_page_markdown_and_json_tell_the_claims(report):
    page, text = html_page(report, version="1"), markdown(report)
    for claim in (each.claim for each in report.judgements):
        assert all(word in shown for word in (claim.id, claim.text, claim.source) for shown in (page, text))
    told = report_as_json(report)["claims"]
    assert [each["verdict"] for each in told] == ["supported", "supported", "contradicted", "not run"]
    assert told[0]["findings"][0]["difference"]["interval"]["low"] < 0


def test_report_of_runs_without_a_suite_has_no_claims(tmp_path):
    report = make_report([make_record()], tmp_path)
    assert report.judgements == ()
    assert "What is claimed" not in html_page(report, version="1")


def test_overview_has_the_mean_and_the_verdict_of_each_task(report):
    assert overview_columns(report.studies) == [
        "method", "mrpc with minilm (accuracy)", "sst2 with minilm (accuracy)",
    ]  # fmt: skip
    rows = overview_cells(report.studies)
    assert [row[0] for row in rows] == LABELS
    assert all(cell.endswith("▼ worse") for cell in rows[-1][1:])


def test_overview_of_different_methods_leaves_cells_empty():
    records = [make_record("lora", task="a", examples=60), make_record("tlora", task="b", examples=60)]
    assert [[bool(cell) for cell in row[1:]] for row in overview_cells(make_studies(records))] == [
        [True, False],
        [False, True],
    ]


def test_trials_are_no_rows_and_are_told_with_their_scores(report, suite):
    trials = [record for record in records_of(suite) if record.tuning.trial]
    study = report.studies[0]
    assert all(record.tuning.trial is None for record in study.records)
    first = tuning_cells(study.tuned[0])
    assert first[:2] == ["lora", "2"]
    value = next(record.metrics["accuracy"] for record in trials if record.name == "mrpc-lora-trial1")
    assert first[2].startswith(f"learning_rate={RATES[0]:g}: {value:.3f}; learning_rate={RATES[1]:g}: ")
    assert first[3] == f"learning_rate={RATES[0]:g}"
    assert [each.label for each in study.tuned] == ["lora", "relayed_lora k=4", "tlora"]


def test_trials_of_a_method_belong_together_whatever_the_order_of_its_options():
    def trial(number, options):
        run = make_record("lora", options=options, learning_rate=10.0**-number, examples=60)
        return replace(run, tuning=TuningInfo(2, number, {"learning_rate": 10.0**-number}))

    row = make_record("lora", options={"r": 4, "alpha": 8.0}, examples=60)
    row = replace(row, tuning=TuningInfo(2, None, {"learning_rate": 0.1}, 0.9))
    trials = [trial(1, {"alpha": 8.0, "r": 4}), trial(2, {"r": 4, "alpha": 8.0})]
    (study,) = make_studies([row, *trials])
    assert [(each.label, len(each.trials)) for each in study.tuned] == [("lora", 2)]


def test_table_counts_the_trials_of_every_row(report):
    study = report.studies[0]
    assert columns(study)[-1] == "trials"
    assert [row[-1] for row in cells(study)] == ["2"] * 6 + [""]


def test_csv_has_the_trials_too(report, suite):
    rows = list(csv.DictReader(io.StringIO(comma_separated(report))))
    assert len(rows) == len(records_of(suite))
    assert sorted({row["trial"] for row in rows}) == ["", "1", "2"]


def test_only_trials_are_no_report_yet():
    trial = replace(make_record(), tuning=TuningInfo(2, 1, {"learning_rate": 1e-3}))
    with pytest.raises(DataError, match="run the suite to its end"):
        make_report([trial])


def test_what_tuning_chose_is_not_part_of_a_label():
    records = [tuned_record("lora", 1e-3, options={"r": 8}), tuned_record("lora", 3e-3, options={"r": 16})]
    assert labels(make_studies(records)[0]) == ["lora r=8", "lora r=16"]


def test_what_tuning_chose_is_named_where_nothing_else_tells_two_rows_apart():
    records = [tuned_record("lora", 1e-3), tuned_record("lora", 3e-3)]
    assert labels(make_studies(records)[0]) == ["lora learning_rate=0.001", "lora learning_rate=0.003"]


def test_a_row_has_the_same_label_in_every_study():
    records = [
        *(make_record(options={"r": r}, task="a", examples=60) for r in (8, 16)),
        make_record(options={"r": 8}, task="b", examples=60),
    ]
    assert [labels(study) for study in make_studies(records)] == [["lora r=8", "lora r=16"], ["lora r=8"]]


def test_methods_that_the_suite_tells_apart_are_rows_even_if_their_records_do_not(tmp_path):
    methods = (Variant("lora", {"r": 8}), Variant("lora", {"r": 8}, {"freeze_head": False}))
    suite = replace(a_suite(tasks=("mrpc",), claims=()), methods=methods, tuning=None)
    save_suite(suite, tmp_path)
    (place,) = suite.conditions()
    record = make_record(examples=60)
    records = [
        with_request(record, out=Path(suite.run_name(place, label, "seed0"))) for label in suite.labels()
    ]
    (study,) = make_report(records, tmp_path).studies
    assert labels(study) == suite.labels()


def test_report_of_a_folder_with_a_suite_is_read_back_from_it(tmp_path):
    suite = write_suite(tmp_path, tasks=("mrpc",), seeds=(0,))
    assert make_report(records_of(suite), tmp_path).name == "relays"


def test_runs_of_a_suite_that_are_not_there_are_told(tmp_path):
    suite = a_suite(seeds=(0, 1), claims=())
    records = records_of(suite)
    save_suite(replace(suite, methods=suite.methods[:-1]), tmp_path)
    assert make_report(records, tmp_path).missing == ()
    runs = [record for record in records if record.tuning is None or record.tuning.trial is None]
    count = sum(record.task.name == "sst2" for record in runs)
    last = next(record for record in reversed(runs) if record.task.name == "sst2")
    (sentence,) = make_report([record for record in records if record is not last], tmp_path).missing
    done = f"{count - 1} of {count} runs of minilm on sst2 are there"
    _, label = runs_by_name(suite)[last.name]
    assert sentence == f"{done}; run the suite again for the others: {label} (1)."
    (sentence,) = make_report([each for each in records if each.task.name == "mrpc"], tmp_path).missing
    assert sentence == "There is no run of minilm on sst2: none was started."


def test_step_times_are_beside_the_rows_they_were_measured_for(tmp_path):
    suite = write_suite(tmp_path, tasks=("mrpc", "sst2"), seeds=(0,))
    write_step_times([step_time("mrpc", "tlora", 1.25), step_time("mrpc", "relayed_lora k=4", 0.9)], tmp_path)
    first, second = make_report(records_of(suite), tmp_path).studies
    step = columns(first).index("step (95 %)")
    told = {row[0]: row[step] for row in cells(first)}
    assert told["lora"] == "×1.00"
    assert told["tlora"] == "×1.25 [1.15, 1.35]"
    assert told["relayed_lora k=8"] == "–"
    assert "step (95 %)" not in columns(second)
    assert "×1.25" in html_page(Report((first,)), version="1")


def test_step_times_against_another_reference_are_left_out(tmp_path):
    suite = write_suite(tmp_path, tasks=("mrpc",), seeds=(0,))
    write_step_times([step_time("mrpc", "tlora", 1.25)], tmp_path)
    (study,) = make_report(records_of(suite), tmp_path, reference="tlora").studies
    assert "step (95 %)" not in columns(study)


def step_time(task, label, ratio):
    return StepTime("minilm", task, label, "lora", ratio, ratio - 0.1, ratio + 0.1, 20, "a processor")
