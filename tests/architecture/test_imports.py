"""Imports point downwards, and importing is free."""

import logging.config
import subprocess
import sys

import pytest
from importlinter.cli import lint_imports

from tests.architecture.sources import ROOT

HEAVY = {"torch", "peft", "transformers", "accelerate", "datasets", "rich", "click", "pydantic"}


def loaded(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has after `statement`."""
    probe = f"import sys\n{statement}\nprint(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


def test_import_contracts_are_kept(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    # It would silence every logger that exists by then, for all tests that follow.
    monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=str(tmp_path)) == 0


def test_importing_rankfold_loads_nothing_heavy():
    assert not loaded("import rankfold") & HEAVY


def test_import_probe_sees_what_is_loaded():
    assert "json" in loaded("import rankfold, json")


def test_command_line_begins_without_what_trains():
    assert not loaded("import rankfold.cli.main") & {"torch", "peft", "transformers", "datasets"}


@pytest.mark.parametrize(
    "reader",
    [
        "rankfold.report.write",
        "rankfold.cli.results",
        "rankfold.runs.records",
        "rankfold.runs.request",
        "rankfold.bench.suites.suite",
        "rankfold.bench.statistics.diff",
    ],
)
def test_reading_records_waits_for_nothing_that_trains(reader):
    assert not loaded(f"import {reader}") & {"torch", "peft", "transformers", "datasets", "sklearn"}


def test_mistakes_in_a_run_are_answered_before_anything_that_trains_is_loaded(tmp_path):
    """Every refusal in one interpreter: it would take seconds if one of them imported torch."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").write_text("mine")
    good = {"--model": "minilm", "--method": "lora", "--task": "bbc_news", "--out": str(tmp_path / "new")}
    cases = {
        "mean 'tlora'": {"--method": "tlroa"},
        "mean 'peft:lora'": {"--method": "peft:lroa"},
        "exists": {"--out": str(tmp_path / "old")},
        "Not a directory": {"--out": str(tmp_path / "old" / "notes.txt" / "run")},
        "there is no data at": {"--data": str(tmp_path / "no.csv")},
        "mean 'bbc_news'": {"--task": "bbc_nws"},
        "mean 'minilm'": {"--model": "minilmm"},
        "there is no model at": {"--model": "/nowhere/at/all"},
        "epochs is 0.0": {"--epochs": "0"},
        "threads is 4000": {"--threads": "4000"},
        "no unfinished run": {"--resume": "", "--model": None, "--method": None},
        "mean 'linear'": {"--scheduler": "linaer"},
    }
    calls = {
        words: [
            "train",
            *(word for pair in {**good, **change}.items() if pair[1] is not None for word in pair if word),
        ]
        for words, change in cases.items()
    }
    modules = loaded(
        "from click.testing import CliRunner; from rankfold.cli.main import cli\n"
        f"for words, call in {calls}.items():\n"
        "    result = CliRunner().invoke(cli, call)\n"
        "    assert result.exit_code == 2 and words in result.stderr, (words, result.stderr)\n"
    )
    assert not modules & {"torch", "peft", "transformers", "datasets", "numpy"}


def test_learning_rates_by_role_are_a_value_without_torch():
    assert "torch" not in loaded("import rankfold.train.schedule")
