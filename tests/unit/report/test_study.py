"""Records become rows: runs that belong together meet, others stay apart, and nothing disappears unseen."""

from dataclasses import replace

import pytest

from rankfold.errors import DataError, SpecError
from rankfold.report.findings import budgets_text
from rankfold.report.study import Report, make_studies
from rankfold.report.tables import cells, verdict_text
from rankfold.report.write import html_page, markdown
from rankfold.runs.record import ReducerInfo
from tests.support.records import fail, make_record, with_request


def labels(study):
    return [row.label for row in study.results]


def test_seeds_of_one_method_are_one_row():
    (study,) = make_studies([make_record(name, seed=seed) for seed in (1, 0) for name in ("lora", "tlora")])
    assert labels(study) == ["lora", "tlora"]
    assert [[run.training.seed for run in row.records] for row in study.results] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"options": {"r": 16}}, "lora r=16"),
        ({"learning_rate": 1e-4}, "lora learning_rate=0.0001"),
        ({"steps": 50}, "lora steps=50"),
    ],
    ids=["option", "learning rate", "budget"],
)
def test_settings_that_differ_make_rows_of_their_own(change, label):
    (study,) = make_studies([make_record(), make_record(**change)])
    assert labels(study)[1] == label
    assert len(study.results) == 2


def test_runs_that_read_other_columns_are_rows_of_their_own():
    record = make_record(examples=60)
    other = with_request(record, text_column="body")
    (study,) = make_studies([record, other])
    assert [row.label for row in study.results] == ["lora", "lora text_column=body"]


def test_runs_that_differ_in_their_rates_alone_are_rows_of_their_own():
    plain = make_record("tlora_plus")
    four = replace(plain, training=replace(plain.training, rates={"tlora_ratio": 4.0}))
    (study,) = make_studies([plain, four])
    assert labels(study) == ["tlora_plus", "tlora_plus tlora_ratio=4"]


@pytest.mark.parametrize("change", [{"task": "mrpc"}, {"model": "other"}], ids=["task", "model"])
def test_tasks_and_models_are_studies_of_their_own(change):
    studies = make_studies([make_record(), make_record(**change)])
    assert [(study.task, study.model) for study in studies] == [
        ("bbc_news", "minilm"),
        (change.get("task", "bbc_news"), change.get("model", "minilm")),
    ]


def test_methods_that_predict_the_same_differ_by_words_and_not_by_an_interval_without_width():
    record = make_record("lora", examples=24)
    (study,) = make_studies([record, replace(record, method=replace(record.method, name="tlora"))])
    assert cells(study)[1][2:4] == ["the same on every example", "≈ not separated [could show 0.117]"]
    assert "0.000 [" not in markdown(Report((study,)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run, ""),
        (
            lambda run: replace(run, training=replace(run.training, steps=3)),
            "The budgets differ: steps 100 (lora), 3 (tlora).",
        ),
        (
            lambda run: replace(run, training=replace(run.training, batch_size=4)),
            "The budgets differ: batch size 16 (lora), 4 (tlora).",
        ),
        (
            lambda run: replace(run, data=replace(run.data, rows={"train": 10})),
            "The budgets differ: training rows 1,600 (lora), 10 (tlora).",
        ),
        (
            lambda run: replace(run, reducer=ReducerInfo({}, layers=())),
            "The budgets differ: a Reducer lets layers rest in tlora.",
        ),
        (lambda run: fail(run), ""),
    ],
    ids=["none", "steps", "batch", "rows", "reducer", "failed"],
)
def test_budgets_that_differ_are_told_under_the_table(change, words):
    report = Report(
        tuple(make_studies([make_record(examples=60), change(make_record("tlora", examples=60))]))
    )
    assert budgets_text(report.studies[0].results) == words
    told = [markdown(report), html_page(report, version="1")]
    assert all(("The budgets differ" in text) == bool(words) and words in text for text in told)


def test_first_row_is_the_reference_unless_another_is_named():
    records = [make_record("lora"), make_record("tlora")]
    assert make_studies(records)[0].results[0].verdict == "reference"
    (study,) = make_studies(records, reference="tlora")
    assert labels(study) == ["tlora", "lora"]
    assert study.results[0].verdict == "reference"
    assert study.results[1].difference is not None


def test_reference_with_a_typo_is_refused_with_a_suggestion():
    with pytest.raises(SpecError, match="Did you mean 'lora'"):
        make_studies([make_record("lora")], reference="lroa")


def test_clear_difference_has_a_verdict_and_a_small_one_has_none():
    records = [
        make_record("lora", quality=0.9),
        make_record("tlora", quality=0.5),
        make_record("lora_fa", quality=0.9),
    ]
    (study,) = make_studies(records)
    assert [row.verdict for row in study.results] == ["reference", "worse", "not separated"]


def test_score_equals_the_metric_of_the_records():
    records = [make_record(seed=seed) for seed in (0, 1)]
    (study,) = make_studies(records)
    expected = sum(record.metrics["accuracy"] for record in records) / 2
    assert study.results[0].score.value == pytest.approx(expected)


def test_failed_run_joins_the_row_of_its_method():
    (study,) = make_studies([make_record(seed=0), fail(make_record(seed=1))])
    (row,) = study.results
    assert (len(row.records), len(row.failures)) == (1, 1)


def test_method_that_only_failed_is_a_row_without_a_score():
    (study,) = make_studies([make_record("lora"), fail(make_record("tlora"))])
    assert labels(study) == ["lora", "tlora"]
    assert study.results[1].score is None
    assert study.results[1].verdict == "not comparable"


def test_result_without_a_seed_in_common_says_so():
    (study,) = make_studies([make_record("lora", seed=0), make_record("tlora", seed=1)])
    assert verdict_text(study.results[1]) == "not comparable: no finished seed in common"


def test_latest_of_equal_runs_counts_and_the_others_are_counted_as_left_out():
    old, new = make_record(quality=0.1), replace(make_record(), created="2027-01-01T00:00:00+00:00")
    (study,) = make_studies([new, old])
    assert study.results[0].records == (new,)
    assert study.repeats == 1


def test_finished_run_is_preferred_to_a_later_failure():
    done, failed = make_record(), replace(fail(make_record()), created="2027-01-01T00:00:00+00:00")
    (study,) = make_studies([done, failed])
    assert study.results[0].records == (done,)


def test_rows_are_compared_on_the_examples_that_all_runs_share():
    whole = make_record("lora")
    part = replace(make_record("tlora"), predictions=make_record("tlora").predictions[100:])
    (study,) = make_studies([whole, part])
    assert study.examples == len(whole.predictions) - 100


def test_baseline_is_that_of_the_examples_that_are_compared():
    long, short = make_record(examples=200), make_record("tlora", examples=100)
    long, short = replace(long, baselines={"majority": 0.2}), replace(short, baselines={"majority": 0.3})
    for records in ((long, short), (short, long)):
        assert make_studies(records)[0].baselines == {"majority": 0.3}


def test_metric_without_predictions_has_a_value_and_no_verdict():
    records = [replace(make_record(name), predictions=()) for name in ("lora", "tlora")]
    (study,) = make_studies(records)
    assert study.results[1].score.value == records[1].metrics["accuracy"]
    assert study.results[1].verdict == "not comparable"


def test_nothing_to_report_is_an_error():
    with pytest.raises(DataError, match="no runs"):
        make_studies([])
