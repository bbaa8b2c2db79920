"""An archive holds what the folders hold, and a suite goes on from either."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from rankfold.bench.executors.base import Inline
from rankfold.bench.suites.runner import run_all
from rankfold.bench.suites.suite import Suite, Variant
from rankfold.errors import DataError
from rankfold.runs.records import (
    ARCHIVE_NAME,
    archived_run,
    find_places,
    find_records,
    read_archive,
    write_archive,
)
from tests.support.records import Trainer, make_record, with_request

BASE = {"model": "minilm", "data": "rows.csv", "steps": 5}
SUITE = Suite("some", BASE, (Variant("lora"), Variant("tlora")), (0, 1))


@pytest.fixture
def archived(tmp_path):
    """Return a folder with nothing but the archive of a suite."""
    run_all(SUITE.requests(tmp_path / "runs"), executor=Inline(Trainer()))
    write_archive(find_places(tmp_path / "runs"), tmp_path / "archive")
    return tmp_path / "archive"


def test_archive_has_every_record_as_it_was_but_for_where(tmp_path, archived):
    found, there = find_records(archived), find_records(tmp_path / "runs")
    assert [replace(each, request=None) for each in found] == [replace(each, request=None) for each in there]
    for one, other in zip(found, there, strict=True):
        assert one.request.identity() == other.request.identity()


def test_archive_names_no_folder_of_the_machine(tmp_path):
    record = with_request(make_record(), out=Path("/some/folder/runs/a"), data_root="/some/folder/data")
    source = "/some/folder/data/mrpc+/some/folder/data/sst2"
    write_archive({"deep/a": replace(record, data=replace(record.data, source=source))}, tmp_path)
    (kept,) = read_archive(tmp_path / ARCHIVE_NAME).values()
    assert kept.request == replace(record.request, out=Path("deep/a"), data_root=None)
    assert kept.data.source == "mrpc+sst2"
    write_archive({"deep/a": kept}, tmp_path / "again")
    assert (tmp_path / "again" / ARCHIVE_NAME).read_bytes() == (tmp_path / ARCHIVE_NAME).read_bytes()


def test_same_records_in_any_order_are_the_same_bytes(tmp_path, archived):
    write_archive(dict(reversed(find_places(archived).items())), tmp_path / "again")
    assert (tmp_path / "again" / ARCHIVE_NAME).read_bytes() == (archived / ARCHIVE_NAME).read_bytes()


def test_suite_goes_on_from_its_archive(archived):
    trainer = Trainer()
    larger = replace(SUITE, seeds=(0, 1, 2))
    outcomes = run_all(larger.requests(archived), executor=Inline(trainer))
    assert trainer.asked == ["lora-seed2", "tlora-seed2"]
    assert [outcome.is_reused for outcome in outcomes] == [True] * 4 + [False] * 2
    assert len(find_records(archived)) == 6


def test_run_that_the_archive_has_with_other_settings_is_done_anew(archived):
    before = (archived / "records.jsonl.gz").read_bytes()
    longer = replace(SUITE, base={**SUITE.base, "steps": 6})
    outcomes = run_all(longer.requests(archived), executor=Inline(Trainer()))
    assert not any(outcome.is_reused for outcome in outcomes)
    assert (archived / "records.jsonl.gz").read_bytes() == before
    assert all((outcome.request.out / "run.json").is_file() for outcome in outcomes)


def test_runs_whose_folders_have_one_name_are_all_kept(tmp_path):
    for rung in range(3):
        folder = tmp_path / "runs" / f"rung-{rung}" / "lora"
        folder.mkdir(parents=True)
        with_request(make_record(seed=rung), out=folder).write(folder)
    places = find_places(tmp_path / "runs")
    write_archive(places, tmp_path / "archive")
    assert list(places) == ["rung-0/lora", "rung-1/lora", "rung-2/lora"]
    found = find_places(tmp_path / "archive")
    assert {place: record.training.seed for place, record in found.items()} == {
        place: record.training.seed for place, record in places.items()
    }
    assert archived_run(tmp_path / "archive" / "rung-1" / "lora") == found["rung-1/lora"]
    assert archived_run(tmp_path / "archive" / "lora") is None


def test_archive_of_an_archive_is_the_same(tmp_path, archived):
    write_archive(find_places(archived.parent / "archive"), tmp_path / "again")
    assert (tmp_path / "again" / ARCHIVE_NAME).read_bytes() == (archived / ARCHIVE_NAME).read_bytes()


def test_archive_without_folders_is_read_by_the_names_of_its_runs(tmp_path):
    records = [with_request(make_record(seed=seed), out=Path("runs/lora-seed0")) for seed in range(2)]
    lines = "".join(f"{json.dumps(record.to_dict())}\n" for record in records)
    (tmp_path / ARCHIVE_NAME).write_bytes(gzip.compress(lines.encode()))
    assert read_archive(tmp_path / ARCHIVE_NAME)["lora-seed0"] == records[0]
    assert find_records(tmp_path) == records


def test_damaged_archive_is_refused_with_its_place(archived):
    whole = (archived / ARCHIVE_NAME).read_bytes()
    (archived / ARCHIVE_NAME).write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"records.jsonl.gz' is damaged"):
        read_archive(archived / ARCHIVE_NAME)


@pytest.mark.parametrize("place", ["/elsewhere/lora", "../lora", "rung-1/../../lora"])
def test_record_of_a_folder_that_is_not_below_its_archive_is_refused_with_its_line(tmp_path, place):
    line = json.dumps({"folder": place, **make_record().to_dict()}, separators=(",", ":"))
    (tmp_path / ARCHIVE_NAME).write_bytes(gzip.compress(line.encode()))
    with pytest.raises(DataError, match=rf"line 1 of '.*{ARCHIVE_NAME}' is of the folder '{place}'"):
        find_places(tmp_path)


def test_record_in_an_archive_that_is_none_is_refused_with_its_line(tmp_path):
    (tmp_path / ARCHIVE_NAME).write_bytes(gzip.compress(b'{"format": 1}\n'))
    with pytest.raises(DataError, match=r"line 1 of .*status"):
        read_archive(tmp_path / ARCHIVE_NAME)
