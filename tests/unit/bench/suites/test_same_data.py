"""Results on different data, or of different versions of a task, are never mixed without a word."""

from dataclasses import replace

import pytest

from rankfold.bench.executors.base import Inline
from rankfold.bench.statistics.diff import compare_records
from rankfold.bench.suites.protocol import run_suite
from rankfold.bench.suites.runner import run_all
from rankfold.bench.suites.search import Tuning
from rankfold.bench.suites.suite import Suite, Variant
from rankfold.errors import DataError
from rankfold.report.study import make_studies
from rankfold.runs.record import note_different_data
from rankfold.tasks import TaskRequest, load_task
from tests.support.records import Trainer, make_record, reading
from tests.support.tiny_models import review_rows, write_splits

METHODS = (Variant("lora"), Variant("tlora"))


@pytest.fixture
def requests(tmp_path, tiny_bert):
    """Return requests on a folder of reviews."""
    folder = write_splits(tmp_path / "talks", train=review_rows(20), validation=review_rows(8, seed=1))
    suite = Suite("some", {"model": str(tiny_bert), "data": str(folder), "steps": 5}, METHODS, (0, 1))
    return suite.requests(tmp_path / "runs")


def _change(tmp_path):
    write_splits(tmp_path / "talks", train=review_rows(20, seed=7))


def test_a_comparison_goes_on_where_its_data_is_the_same(requests):
    run_all(requests[:2], executor=Inline(reading(Trainer())))
    assert [outcome.is_reused for outcome in run_all(requests, executor=Inline(reading(Trainer())))] == [
        True,
        True,
        False,
        False,
    ]


def test_a_comparison_does_not_go_on_where_its_data_has_changed(requests, tmp_path):
    run_all(requests[:2], executor=Inline(reading(Trainer())))
    _change(tmp_path)
    later = Trainer()
    with pytest.raises(DataError, match=r"the data of '\w+' had the hash \w{8} .* --overwrite .* --out"):
        run_all(requests, executor=Inline(reading(later)))
    assert later.asked == []


def test_runs_do_not_begin_on_other_data_than_their_trials(requests, tmp_path):
    suite = Suite(
        "some",
        {"model": requests[0].model, "data": requests[0].data, "steps": 5},
        METHODS,
        tuning=Tuning({"learning_rate": [1e-3, 1e-2]}),
    )

    def stopping(request, *, progress=None):
        if "trial" not in request.out.name:
            raise KeyboardInterrupt
        return reading(Trainer())(request, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path / "suite", executor=Inline(stopping))
    _change(tmp_path)
    later = Trainer()
    with pytest.raises(DataError, match=r"had the hash \w{8} when it was first run, and has \w{8} now"):
        run_suite(suite, tmp_path / "suite", executor=Inline(reading(later)))
    assert later.asked == []


def test_overwriting_runs_everything_on_the_new_data(requests, tmp_path):
    run_all(requests[:2], executor=Inline(reading(Trainer())))
    _change(tmp_path)
    outcomes = run_all(requests, executor=Inline(reading(Trainer())), overwrite=True)
    assert len({outcome.record.data.sha256 for outcome in outcomes}) == 1


def test_records_of_different_data_are_noticed_where_nothing_is_left_to_do(requests):
    outcomes = run_all(requests, executor=Inline(reading(Trainer())))
    last = outcomes[-1].record
    replace(last, data=replace(last.data, sha256="0" * 64)).write(requests[-1].out)
    with pytest.raises(DataError, match=f"when '{requests[-1].out}' was run"):
        run_all(requests, executor=Inline(reading(Trainer())))


def test_another_version_of_a_task_is_noticed(requests):
    (outcome, *_) = run_all(requests[:1], executor=Inline(reading(Trainer())))
    record = outcome.record
    replace(record, task=replace(record.task, version=2)).write(requests[0].out)
    with pytest.raises(DataError, match="had version 2 when it was first run, and has 1 now"):
        run_all(requests, executor=Inline(reading(Trainer())))


def test_data_that_cannot_be_read_any_more_is_the_failure_of_each_run(requests, tmp_path):
    run_all(requests[:2], executor=Inline(reading(Trainer())))
    for path in (tmp_path / "talks").iterdir():
        path.unlink()
    outcomes = run_all(requests, executor=Inline(reading(Trainer())))
    assert [outcome.record.status for outcome in outcomes] == ["done", "done", "failed", "failed"]


def _on(record, sha256="", version=1):
    return replace(
        record, data=replace(record.data, sha256=sha256), task=replace(record.task, version=version)
    )


@pytest.mark.parametrize("changed", [{"sha256": "ef" * 32}, {"version": 2}])
def test_a_report_keeps_different_data_apart_and_says_so(changed, caplog):
    records = [_on(make_record("lora")), _on(make_record("tlora"), **changed)]
    studies = make_studies(records)
    assert [len(study.results) for study in studies] == [1, 1]
    assert "2 different sets of rows or versions" in caplog.text


def test_nothing_is_said_of_runs_on_the_same_data(caplog):
    record = make_record("lora")
    old = replace(record, task=replace(record.task, version=None))
    note_different_data([record, replace(record, task=replace(record.task, version=1)), old])
    assert not caplog.text


def test_a_diff_does_not_compare_different_versions():
    old, new = make_record("lora"), _on(make_record("lora"), make_record("lora").data.sha256, 2)
    (change,) = compare_records([old], [new]).changes
    assert (change.outcome, change.why) == ("not comparable", "the task has changed: its version differs")


def test_the_hash_is_of_the_rows_and_not_of_the_file(tmp_path):
    rows = review_rows(20)
    first = write_splits(tmp_path / "a", train=rows, validation=rows)
    second = write_splits(
        tmp_path / "b", train=[dict(reversed(row.items())) for row in rows], validation=rows
    )
    assert (
        len({load_task(TaskRequest(data=str(each)), is_causal=False).sha256 for each in (first, second)}) == 1
    )
