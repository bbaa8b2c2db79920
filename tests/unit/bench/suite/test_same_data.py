"""Results on different data, or of different versions of a task, are never mixed without a word."""

from dataclasses import replace

import pytest

from rankfold.bench.records.measured import note_different_data
from rankfold.bench.statistics.diff import compare_records
from rankfold.bench.suite.executors.executor import Inline
from rankfold.bench.suite.rows import SuiteMethod
from rankfold.bench.suite.runner import run_all
from rankfold.bench.suite.same_data import check_still_same_data
from rankfold.bench.suite.suite import Suite
from rankfold.bench.tasks import TaskRequest, load_task
from rankfold.errors import DataError
from rankfold.report.study import make_studies
from tests.support.records import Trainer, make_record
from tests.support.tiny_models import review_rows, write_splits

METHODS = (SuiteMethod("lora"), SuiteMethod("tlora"))


@pytest.fixture
def reviewed(tmp_path, tiny_bert):
    """Return requests on a folder of reviews, and a trainer whose records have the hash of what is there."""
    folder = write_splits(tmp_path / "talks", train=review_rows(20), validation=review_rows(8, seed=1))
    suite = Suite("some", {"model": str(tiny_bert), "data": str(folder), "steps": 5}, METHODS, (0, 1))

    class Reader(Trainer):
        def __call__(self, request, *, progress=None):
            digest = load_task(request.task_request, is_causal=False).sha256
            record = super().__call__(request, progress=progress)
            record = replace(record, data=replace(record.data, sha256=digest))
            record.write(request.out)
            return record

    return suite.requests(tmp_path / "runs"), Reader


def _change(tmp_path):
    write_splits(tmp_path / "talks", train=review_rows(20, seed=7))


def test_a_comparison_goes_on_where_its_data_is_the_same(reviewed):
    requests, trainer = reviewed
    run_all(requests[:2], executor=Inline(trainer()))
    assert [outcome.is_kept for outcome in run_all(requests, executor=Inline(trainer()))] == [
        True,
        True,
        False,
        False,
    ]


def test_a_comparison_does_not_go_on_where_its_data_has_changed(reviewed, tmp_path):
    requests, trainer = reviewed
    run_all(requests[:2], executor=Inline(trainer()))
    _change(tmp_path)
    later = trainer()
    with pytest.raises(DataError, match=r"the data of '\w+' had the hash \w{8} .* --overwrite .* --out"):
        run_all(requests, executor=Inline(later))
    assert later.asked == []


def test_what_was_done_on_other_data_is_noticed_before_more_is_built_on_it(reviewed, tmp_path):
    requests, trainer = reviewed
    done = [(each.request, each.record) for each in run_all(requests[:2], executor=Inline(trainer()))]
    check_still_same_data(done)
    _change(tmp_path)
    with pytest.raises(DataError, match=r"has \w{8} now"):
        check_still_same_data(done)


def test_overwriting_runs_everything_on_the_new_data(reviewed, tmp_path):
    requests, trainer = reviewed
    run_all(requests[:2], executor=Inline(trainer()))
    _change(tmp_path)
    outcomes = run_all(requests, executor=Inline(trainer()), overwrite=True)
    assert len({outcome.record.data.sha256 for outcome in outcomes}) == 1


def test_records_of_different_data_are_noticed_where_nothing_is_left_to_do(reviewed):
    requests, trainer = reviewed
    outcomes = run_all(requests, executor=Inline(trainer()))
    last = outcomes[-1].record
    replace(last, data=replace(last.data, sha256="0" * 64)).write(requests[-1].out)
    with pytest.raises(DataError, match=f"when '{requests[-1].out}' was run"):
        run_all(requests, executor=Inline(trainer()))


def test_another_version_of_a_task_is_noticed(reviewed):
    requests, trainer = reviewed
    (outcome, *_) = run_all(requests[:1], executor=Inline(trainer()))
    record = outcome.record
    replace(record, task=replace(record.task, version=2)).write(requests[0].out)
    with pytest.raises(DataError, match="had version 2 when it was first run, and has 1 now"):
        run_all(requests, executor=Inline(trainer()))


def test_data_that_cannot_be_read_any_more_is_the_failure_of_each_run(reviewed, tmp_path):
    requests, trainer = reviewed
    run_all(requests[:2], executor=Inline(trainer()))
    for path in (tmp_path / "talks").iterdir():
        path.unlink()
    outcomes = run_all(requests, executor=Inline(trainer()))
    assert [outcome.record.status for outcome in outcomes] == ["done", "done", "failed", "failed"]


def _on(record, sha256="", version=1):
    return replace(
        record, data=replace(record.data, sha256=sha256), task=replace(record.task, version=version)
    )


@pytest.mark.parametrize("changed", [{"sha256": "ef" * 32}, {"version": 2}])
def test_a_report_keeps_different_data_apart_and_says_so(changed, caplog):
    records = [_on(make_record("lora")), _on(make_record("tlora"), **changed)]
    studies = make_studies(records)
    assert [len(study.rows) for study in studies] == [1, 1]
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
