"""`rankfold store` keeps adapters, finds them, moves them, and says so when one is damaged."""

import json
import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.support.records import make_record
from tests.support.stored import make_adapter


def run(*words, code=0):
    result = CliRunner().invoke(cli, ["store", *(str(word) for word in words)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store.db"
    for seed, preset in enumerate(("tlora", "lora")):
        make_adapter(seed, preset=preset).write(tmp_path / preset)
        run(
            "put",
            path,
            f"customers/{preset}",
            tmp_path / preset,
            "-t",
            f"nth={seed}",
            "-m",
            f"accuracy=0.{seed}",
        )
    return path


def test_adapter_that_was_put_comes_back(store, tmp_path):
    said = run("get", store, "customers/lora", tmp_path / "again")
    assert "again" in said.stderr
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "lora" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), 2),
        (("--method", "lora"), 1),
        (("-t", "nth=0"), 1),
        (("-w", "accuracy>0"), 1),
        (("-w", "accuracy>1"), 0),
    ],
    ids=str,
)
def test_list_shows_what_meets_the_conditions(store, options, expected):
    assert len(json.loads(run("list", store, *options, "--json").stdout)) == expected
    table = run("list", store, *options).stdout
    assert f"adapters: {expected}" in table
    assert table.count("customers/") == expected


def test_what_is_there_already_names_the_option_that_replaces_it(store, tmp_path):
    adapter, file = tmp_path / "lora", tmp_path / "all"
    assert "--replace" in run("put", store, "customers/lora", adapter, code=2).stderr
    run("put", store, "customers/lora", adapter, "--replace")
    run("export", store, file)
    assert "--overwrite" in run("export", store, file, code=2).stderr


@pytest.mark.parametrize("words", [("list",), ("export", "all")], ids=lambda words: words[0])
def test_condition_on_what_no_adapter_has_is_wrong_use(store, words):
    command, *more = words
    said = run(command, store, *more, "-w", "acuracy>0", code=2).stderr
    assert "Did you mean 'accuracy'?" in said


def test_metrics_come_from_the_run_unless_they_are_given(store, tmp_path):
    make_adapter().write(tmp_path / "run")
    make_record().write(tmp_path / "run")
    run("put", store, "run", tmp_path / "run")
    run("put", store, "given", tmp_path / "run", "-m", "f1=0.5")
    found = {record["name"]: record["metrics"] for record in json.loads(run("list", store, "--json").stdout)}
    assert found["run"] == dict(make_record().metrics)
    assert found["given"] == {"f1": 0.5}


def test_deleted_adapters_are_gone_together_or_not_at_all(store):
    run("delete", store, "customers/lora", "absent", code=2)
    assert len(json.loads(run("list", store, "--json").stdout)) == 2
    run("delete", store, "customers/lora", "customers/tlora")
    assert "removed: 2 parts, 2 families" in run("gc", store).stderr
    assert json.loads(run("stats", store, "--json").stdout)["records"] == 0
    assert "file bytes" in run("stats", store).stdout


def test_store_moves_through_an_exported_file(store, tmp_path):
    assert ": 2" in run("export", store, tmp_path / "all").stderr
    run("export", store, tmp_path / "all", code=2)
    assert ": 1" in run("export", store, tmp_path / "all", "--method", "lora", "--overwrite").stderr
    run("import", store, tmp_path / "all", code=2)
    assert "imported: 0" in run("import", store, tmp_path / "all", "--skip").stderr
    assert "imported: 1" in run("import", store, tmp_path / "all", "--replace").stderr
    assert "imported: 1" in run("import", tmp_path / "new.db", tmp_path / "all").stderr


def test_damaged_adapter_is_named_and_fails_the_check(store):
    assert "as they were written: 2" in run("verify", store).stderr
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE tags SET value = '7' WHERE value = '1'")
        connection.commit()
    failed = run("verify", store, "--json", code=1)
    assert [fault["name"] for fault in json.loads(failed.stdout)] == ["customers/lora"]
    assert "faults: 1" in failed.stderr
    assert "customers/lora" in run("verify", store, code=1).stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("list", "absent.db"), 2),
        (("list", "lora/adapter_config.json"), 2),
        (("get", "store.db", "absent", "out"), 2),
        (("put", "store.db", "a b", "lora"), 2),
        (("put", "store.db", "a", "absent"), 2),
        (("put", "store.db", "customers/lora", "lora"), 2),
        (("put", "store.db", "a", "lora", "-t", "x"), 2),
        (("put", "store.db", "a", "lora", "-m", "f1=high"), 2),
        (("list", "store.db", "-w", "accuracy"), 2),
        (("import", "store.db", "lora/adapter_config.json"), 2),
    ],
    ids=str,
)
def test_wrong_use_is_one_line_with_its_exit_code(store, tmp_path, monkeypatch, words, code):
    monkeypatch.chdir(tmp_path)
    result = run(*words, code=code)
    assert (len(result.stderr.splitlines()), result.stdout) == (1, "")
