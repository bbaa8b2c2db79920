"""`rankfold bench diff` finds what has become worse between two folders of runs."""

import json

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.support.records import fail, make_record


@pytest.fixture
def folder(tmp_path):
    def write(name, *records):
        for index, record in enumerate(records):
            place = tmp_path / name / str(index)
            place.mkdir(parents=True)
            record.write(place)
        return str(tmp_path / name)

    return write


def test_diff_has_exit_code_1_when_something_has_become_worse(folder):
    old = folder("old", make_record("lora"), make_record("tlora"), make_record("lora_fa"))
    new = folder("new", make_record("lora"), make_record("tlora", quality=0.7), fail(make_record("lora_fa")))
    result = CliRunner().invoke(cli, ["bench", "diff", old, new])
    assert result.exit_code == 1
    assert all(words in result.stdout for words in ("the same", "worse", "failed", "×1.00"))
    assert "lora_fa r=8 on bbc_news, failed: seed 0: the loss is not a number" in result.stderr
    assert "2 of 3 have become worse" in result.stderr


def test_diff_has_exit_code_0_when_nothing_has(folder):
    old = folder("old", make_record("lora"), make_record("tlora"))
    new = folder("new", make_record("lora"), make_record("nora"))
    result = CliRunner().invoke(cli, ["bench", "diff", old, new])
    assert result.exit_code == 0
    assert "in OLD and not in NEW: tlora r=8" in result.stderr
    assert "in NEW and not in OLD: nora r=8" in result.stderr


def test_diff_as_json_has_stable_keys(folder):
    old, new = folder("old", make_record("lora")), folder("new", make_record("lora", quality=0.8))
    found = json.loads(CliRunner().invoke(cli, ["bench", "diff", old, new, "--json"]).stdout)
    assert set(found) == {"changes", "only_old", "only_new"}
    (change,) = found["changes"]
    assert change["outcome"] == "worse"
    assert set(change["difference"]["interval"]) == {"value", "low", "high"}


def test_a_folder_without_runs_has_exit_code_2(tmp_path):
    result = CliRunner().invoke(cli, ["bench", "diff", str(tmp_path), str(tmp_path)])
    assert result.exit_code == 2
    assert "there is no run.json" in result.stderr
