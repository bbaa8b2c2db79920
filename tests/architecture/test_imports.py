"""Imports point downwards, and importing is free."""

import logging.config
import subprocess
import sys

import pytest
from importlinter.cli import lint_imports

from tests.architecture.sources import ROOT

HEAVY = ["torch", "peft", "transformers", "accelerate", "datasets", "rich", "click", "pydantic", "plotly"]


def loads(statement: str, module: str) -> bool:
    """Tell whether a fresh interpreter has `module` after `statement`."""
    probe = f"import sys; {statement}; print({module!r} in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return finished.stdout.strip() == "True"


def test_import_contracts_are_kept(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    # It would silence every logger that exists by then, for all tests that follow.
    monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=str(tmp_path)) == 0


@pytest.mark.parametrize("heavy", HEAVY)
def test_import_rankfold_leaves_out(heavy):
    assert not loads("import rankfold", heavy)


def test_import_probe_sees_what_is_loaded():
    assert loads("import rankfold, json", "json")


@pytest.mark.parametrize("heavy", ["torch", "peft", "transformers", "datasets"])
def test_command_line_loads_without(heavy):
    assert not loads("import rankfold.cli.main", heavy)


@pytest.mark.parametrize("heavy", ["torch", "peft", "transformers", "datasets", "sklearn"])
@pytest.mark.parametrize(
    "reader", ["rankfold.report.write", "rankfold.bench.suite.suite", "rankfold.bench.statistics.diff"]
)
def test_reading_records_waits_for_nothing_that_trains(reader, heavy):
    assert not loads(f"import {reader}", heavy)


def test_learning_rates_by_role_are_a_value_without_torch():
    assert not loads("import rankfold.train.rates.rates", "torch")
