"""An archive holds what the folders hold, and a suite goes on from either."""

import gzip
from dataclasses import replace

import pytest

from rankfold.bench.records.archive import NAME, read_archive, write_archive
from rankfold.bench.records.find import find_records
from rankfold.bench.suite.executors.executor import Inline
from rankfold.bench.suite.runner import run_all
from rankfold.bench.suite.suite import Suite, SuiteMethod
from rankfold.errors import DataError
from tests.support.records import Trainer

BASE = {"model": "minilm", "data": "rows.csv", "steps": 5}
SUITE = Suite("some", BASE, (SuiteMethod("lora"), SuiteMethod("tlora")), (0, 1))


@pytest.fixture
def archived(tmp_path):
    """Return a folder with nothing but the archive of a suite."""
    run_all(SUITE.requests(tmp_path / "runs"), executor=Inline(Trainer()))
    write_archive(find_records(tmp_path / "runs"), tmp_path / "archive")
    return tmp_path / "archive"


def test_archive_has_every_record_as_it_was(tmp_path, archived):
    assert find_records(archived) == find_records(tmp_path / "runs")


def test_same_records_in_any_order_are_the_same_bytes(tmp_path, archived):
    write_archive(reversed(find_records(archived)), tmp_path / "again")
    assert (tmp_path / "again" / NAME).read_bytes() == (archived / NAME).read_bytes()


def test_suite_goes_on_from_its_archive(archived):
    trainer = Trainer()
    larger = replace(SUITE, seeds=(0, 1, 2))
    outcomes = run_all(larger.requests(archived), executor=Inline(trainer))
    assert trainer.asked == ["lora-seed2", "tlora-seed2"]
    assert [outcome.is_kept for outcome in outcomes] == [True] * 4 + [False] * 2
    assert len(find_records(archived)) == 6


def test_run_that_the_archive_has_with_other_settings_is_done_anew(archived):
    before = (archived / "records.jsonl.gz").read_bytes()
    longer = replace(SUITE, base={**SUITE.base, "steps": 6})
    outcomes = run_all(longer.requests(archived), executor=Inline(Trainer()))
    assert not any(outcome.is_kept for outcome in outcomes)
    assert (archived / "records.jsonl.gz").read_bytes() == before
    assert all((outcome.request.out / "run.json").is_file() for outcome in outcomes)


def test_damaged_archive_is_refused_with_its_place(archived):
    whole = (archived / NAME).read_bytes()
    (archived / NAME).write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"records.jsonl.gz' is damaged"):
        read_archive(archived / NAME)


def test_record_in_an_archive_that_is_none_is_refused_with_its_line(tmp_path):
    (tmp_path / NAME).write_bytes(gzip.compress(b'{"format": 1}\n'))
    with pytest.raises(DataError, match=r"line 1 of .*status"):
        read_archive(tmp_path / NAME)
