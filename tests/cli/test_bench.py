"""`rankfold bench`: what has become worse between two folders of runs, and what a run would take."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rankfold.bench.step_times import StepTime, read_step_times, write_step_times
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


ROBERTA = ["--model", "FacebookAI/roberta-base", "--max-length", "16", "--set", "target_modules=query,value"]


def test_estimate_prints_the_same_numbers_as_table_and_as_json():
    words = ["bench", "estimate", *ROBERTA, "--method", "relayed_lora", "--task", "mrpc", "--epochs", "30"]
    table = CliRunner().invoke(cli, words)
    data = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert table.exit_code == 0
    for count in (data["base"], data["parameters"]["stored"], data["steps"]):
        assert f" {count:,}\n" in table.stdout
    assert "an A100 80GB reaches 40 % of 312 TFLOP/s" in table.stderr
    assert data["memory"]["total"] == sum(data["memory"].values()) - data["memory"]["total"]


def test_estimate_counts_the_rows_and_classes_of_own_data(reviews, tiny_bert):
    by_root = ["--data-root", str(reviews.parent), "--task", reviews.name]
    for words in (["--data", str(reviews)], by_root):
        result = CliRunner().invoke(
            cli, ["bench", "estimate", "--model", str(tiny_bert), "--method", "lora", *words, "--json"]
        )
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert (told["rows"], told["steps"], told["kind"]) == (48, 9, "classification")
    known = ["bench", "estimate", *ROBERTA, "--method", "lora", "--task", "mrpc", "--data-root", str(reviews)]
    assert json.loads(CliRunner().invoke(cli, [*known, "--json"]).stdout)["rows"] == 3668


def test_estimate_says_when_the_memory_is_too_small_and_what_is_not_counted():
    words = ["bench", "estimate", *ROBERTA, "--method", "nora", "--steps", "1", "--batch-size", "200000"]
    result = CliRunner().invoke(cli, words)
    assert "an A100 80GB has too little memory for this; lower --batch-size or --max-length." in result.stderr
    reason = "not counted, as tokens go through a model without weights"
    assert f"{reason}: what the adapter keeps" in result.stderr


def test_estimate_takes_the_users_device_and_reducer():
    words = [
        "bench",
        "estimate",
        *ROBERTA,
        "--method",
        "effilora",
        "--rows",
        "32",
        "--flops",
        "1e9",
        "--json",
    ]
    plain, reduced = (
        json.loads(CliRunner().invoke(cli, [*words, *more]).stdout)
        for more in ([], ["--reducer-set", "select=random"])
    )
    assert plain["hours"] == pytest.approx(plain["flops"] / 1e9 / 3600)
    assert reduced["parameters"]["active"] < plain["parameters"]["active"]


def test_estimate_of_a_model_that_nobody_knows_names_those_it_knows():
    words = ["bench", "estimate", "--model", "./absent", "--method", "lora", "--steps", "1"]
    result = CliRunner().invoke(cli, words)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "FacebookAI/roberta-base" in result.stderr


def test_archive_and_speed_refuse_a_file_in_place_of_a_folder(folder, tmp_path):
    runs = folder("runs", make_record("lora"))
    (tmp_path / "file").touch()
    out = ["--out", str(tmp_path / "file")]
    for words in (["archive", runs], ["speed", "--suite", "quick"]):
        result = CliRunner().invoke(cli, ["bench", *words, *out])
        assert result.exit_code == 2, result.output
        assert "cannot write" in result.stderr


def test_archive_replaces_no_other_runs_unless_that_is_asked_for(folder, tmp_path):
    one, other = (
        folder("one", make_record("lora"), make_record("nora")),
        folder("other", make_record("tlora")),
    )
    target = str(tmp_path / "kept")

    def archived(source, *words):
        return CliRunner().invoke(cli, ["bench", "archive", source, "--out", target, *words])

    assert archived(one).exit_code == archived(one).exit_code == 0
    before = (tmp_path / "kept" / "records.jsonl.gz").read_bytes()
    refused = archived(other)
    assert (refused.exit_code, "holds other runs ('1')" in refused.stderr) == (2, True)
    assert (tmp_path / "kept" / "records.jsonl.gz").read_bytes() == before
    assert archived(other, "--overwrite").exit_code == 0


def test_archive_takes_the_step_times_along(folder, tmp_path):
    runs = folder("runs", make_record("lora"))
    times = [StepTime("minilm", "mrpc", "tlora", "lora", 1.2, 1.1, 1.3, 20, "a processor")]
    write_step_times(times, Path(runs))
    result = CliRunner().invoke(cli, ["bench", "archive", runs, "--out", str(tmp_path / "kept")])
    assert result.exit_code == 0
    assert read_step_times(tmp_path / "kept") == times
