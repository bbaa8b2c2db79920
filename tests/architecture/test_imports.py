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
    probe = f"import sys; {statement}; print(*sys.modules)"
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


def test_unknown_method_is_answered_before_anything_that_trains_is_loaded():
    words = ["train", "--model", "minilm", "--method", "tlroa", "--out", "run"]
    modules = loaded(
        "from click.testing import CliRunner; from rankfold.cli.main import cli; "
        f"stderr = CliRunner().invoke(cli, {words}).stderr; assert \"mean 'tlora'\" in stderr, stderr"
    )
    assert not modules & {"torch", "peft", "transformers", "datasets"}


def test_learning_rates_by_role_are_a_value_without_torch():
    assert "torch" not in loaded("import rankfold.train.schedule")
