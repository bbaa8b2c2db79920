"""What a suite would take is a table that says what it counts, and each gap once."""

from pathlib import Path

import pytest

from rankfold.cli.compare import show_estimates
from rankfold.runs.request import RunRequest


@pytest.fixture
def request_(tiny_bert):
    def make(**changes):
        given = {"task": "mrpc", "method": "lora", "max_length": 8, "steps": 2, "hold_out": False, **changes}
        return RunRequest(
            model=str(tiny_bert), options={"target_modules": ["query"]}, out=Path("out"), **given
        )

    return make


def test_trials_of_a_tuning_are_called_that_and_short_times_are_not_zero_hours(request_, capsys):
    show_estimates([request_(), request_(hold_out=True)], as_json=False)
    said = capsys.readouterr()
    assert "lora (trials)" in said.out
    assert "2 runs, about 0.0 s on" in said.err


def test_the_bytes_of_a_plan_are_those_that_are_learned(request_, capsys):
    show_estimates([request_()], as_json=False)
    assert "learned bytes" in capsys.readouterr().out


def test_what_cannot_be_said_of_several_methods_is_said_once(request_, tiny_bert, capsys):
    show_estimates(
        [request_(task=None, steps=None, method=name) for name in ("lora", "tlora")], as_json=False
    )
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "rows of the training split" in line)
    assert line.startswith(f"lora on {tiny_bert}, tlora on {tiny_bert}: ")
