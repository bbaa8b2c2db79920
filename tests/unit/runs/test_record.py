"""The record of a run survives the file, and the file is read strictly."""

import json
from dataclasses import replace

import pytest

from rankfold.errors import DataError
from rankfold.runs.record import NAME, FitInfo, RunRecord
from tests.support.records import fail, make_record

FITTED = replace(make_record(examples=5), fit=FitInfo("60,000 trained numbers", (27, 80, 240), 2, 2))


@pytest.mark.parametrize(
    "record",
    [
        make_record(examples=5),
        make_record(kind="regression", examples=5),
        fail(make_record(examples=5)),
        FITTED,
    ],
    ids=["classification", "regression", "failed", "of a choice"],
)
def test_a_record_survives_its_file(tmp_path, record):
    path = record.write(tmp_path)
    assert RunRecord.read(path) == RunRecord.read(tmp_path) == record


def test_a_record_from_before_there_were_choices_is_read(tmp_path):
    path = make_record(examples=3).write(tmp_path)
    values = json.loads(path.read_text("utf-8"))
    del values["fit"]
    path.write_text(json.dumps(values), "utf-8")
    assert RunRecord.read(path) == make_record(examples=3)


def test_a_record_s_numbers_keep_their_type(tmp_path):
    record = make_record(examples=3)
    record.write(tmp_path)
    read = RunRecord.read(tmp_path)
    assert [type(each.label) for each in read.predictions] == [int] * 3
    assert type(read.curve.train[0]["step"]) is type(record.curve.train[0]["step"])


def test_writing_replaces_in_one_step_and_leaves_nothing_else(tmp_path):
    make_record(seed=0, examples=3).write(tmp_path)
    make_record(seed=1, examples=3).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert RunRecord.read(tmp_path).training.seed == 1


def test_the_file_starts_with_its_format(tmp_path):
    values = json.loads(make_record(examples=3).write(tmp_path).read_text("utf-8"))
    assert next(iter(values.items())) == ("format", 2)


def _spoilt(tmp_path, change):
    path = make_record(examples=3).write(tmp_path)
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values["model"].update(colour="red"), r"model\.colour"),
        (lambda values: values["task"].pop("kind"), r"task\.kind"),
        (lambda values: values["training"].update(steps="100"), r"training\.steps"),
        (lambda values: values.update(status="perhaps"), "status"),
        (lambda values: values.update(format=3), "format"),
        (lambda values: values.update(created="yesterday"), "created: .*'yesterday'"),
        (lambda values: values.update(created="2026-03-01T10:20:30"), "created: .* has no time zone"),
        (lambda values: values["metrics"].clear(), "status is 'done', but metrics has no 'accuracy'"),
    ],
    ids=[
        *("unknown key", "missing key", "wrong type", "unknown status", "other format"),
        *("no time", "no time zone", "no result"),
    ],
)
def test_a_field_that_is_not_as_written_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=rf"run\.json' is no run record .*{words}"):
        RunRecord.read(_spoilt(tmp_path, change))


def test_all_faults_are_named_at_once(tmp_path):
    def change(values):
        values["model"]["colour"] = "red"
        del values["seconds"]

    with pytest.raises(DataError, match=r"(?s)model\.colour.*seconds|seconds.*model\.colour"):
        RunRecord.read(_spoilt(tmp_path, change))


def test_half_a_record_is_damaged(tmp_path):
    path = make_record(examples=3).write(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="no run record"):
        RunRecord.read(path)


def test_a_folder_without_record_says_what_to_name(tmp_path):
    with pytest.raises(DataError, match="name a folder that `rankfold train` wrote"):
        RunRecord.read(tmp_path)
