"""Requests: values that make sense, and the command, JSON and YAML that repeat them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rankfold.cli.main import cli
from rankfold.cli.train import command, make_request
from rankfold.errors import DataError, SpecError
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.fields import differences, fields_of, flag_of, read_yaml
from rankfold.runs.migrate import request_of_command
from rankfold.runs.record import parse_record
from rankfold.runs.request import RunRequest, ScoringName
from rankfold.tasks.scoring import Scoring
from tests.support.records import make_record

REQUEST = RunRequest(
    model="minilm",
    method="lora",
    data="reviews",
    out=Path("runs/one"),
    options={"r": 2},
    steps=4,
    batch_size=8,
    learning_rate=1e-2,
    max_length=32,
)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"weight_decay": -0.1},
        {"weight_decay": math.nan},
        {"epochs": 2},
        {"epochs": math.inf, "steps": None},
        {"warmup": 1.0},
        {"seed": -1},
        {"threads": 100_000},
        {"epochs": 1e308, "steps": None},
        {"learning_rate": math.nan},
        {"steps": True},
        {"batch_size": "8"},
        {"freeze_head": "yes"},
        {"options": {"r": {1, 2}}},
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused(change):
    with pytest.raises(SpecError):
        replace(REQUEST, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; give a whole number above 0, up to 1000000000000."),
        ({"warmup": 1.0}, "warmup is 1.0; give a number from 0, below 1."),
        ({"learning_rate": math.inf}, "learning_rate is inf; give a finite number above 0"),
        ({"precision": "fp23"}, "unknown precision 'fp23'. Did you mean 'fp32'?"),
        ({"epochs": 2.0}, "epochs (2) and steps (4) are both given; give one of them."),
        ({"metric": "f1,,mcc"}, "metric is 'f1,,mcc', which has an empty item"),
        ({"report_to": ","}, "report_to is ',', which has an empty item"),
        ({"modle": "minilm"}, "unknown option 'modle' of a run. Did you mean 'model'?"),
        ({"model": None}, "model is None; give a text."),
        ({"options": {"alpha": math.nan}}, "options.alpha is nan; give a finite number."),
        ({"options": {"a": [1, {"b": math.inf}]}}, "options.a.1.b is inf; give a finite number."),
        ({"reducer": {"active_fraction": 10**400}}, "active_fraction is larger than any number"),
        ({"reducer": {"selct": "last"}}, "unknown option 'selct' of the Reducer. Did you mean 'select'?"),
    ],
    ids=str,
)
def test_refusal_names_the_value_and_the_remedy(change, message):
    with pytest.raises(SpecError) as refusal:
        RunRequest(**{**REQUEST.to_dict(), **change})
    assert str(refusal.value).startswith(message)


_HUGE = [10**40, 1e308, math.inf, math.nan]
_ABSURD = st.one_of(
    st.sampled_from([*_HUGE, -(10**40), -1e308, -math.inf, 0, -8, "", "8", [], {}]),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(),
    st.booleans(),
    st.lists(st.none(), max_size=2),
    st.none(),
)


def refusal_of(call, error):
    """Return the message of the only error that a call may raise; None if it raises none."""
    try:
        call()
    except error as refusal:
        return str(refusal)
    return None


@given(st.sampled_from(sorted(fields_of(RunRequest))), _ABSURD)
def test_absurd_value_of_any_field_is_accepted_or_refused_by_name(name, value):
    """The same in Python, in a record's JSON, and on the command line: never another error."""
    values = {"model": "m", "method": "lora", "out": "new", name: value}
    refusal = refusal_of(lambda: RunRequest(**values), SpecError)
    assert refusal is None or name in refusal
    record = json.dumps({**make_record("run").to_dict(), "request": values})
    assert name in (refusal_of(lambda: parse_record(record.encode(), "'run.json'"), DataError) or name)
    flag = flag_of(name, fields_of(RunRequest)[name])
    words = [f"--{key}={item}" for key, item in values.items() if key != name] + [f"{flag}={value}"]
    result = CliRunner().invoke(cli, ["train", *words, "--print-config"])
    assert result.exit_code in (0, 2), result.output
    assert result.exit_code == 0 or name in result.stderr or flag in result.stderr


def test_an_unknown_scheduler_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match=r"unknown scheduler 'linaer'. Did you mean 'linear'"):
        replace(REQUEST, scheduler="linaer")


def test_the_command_names_everything_that_is_not_a_default():
    words = REQUEST.command()
    assert words[:2] == ("rankfold", "train")
    assert dict(zip(words[2::2], words[3::2], strict=True)) == {
        "--model": REQUEST.model,
        "--method": "lora",
        "--out": str(REQUEST.out),
        "--data": REQUEST.data,
        "--set": "r=2",
        "--steps": "4",
        "--batch-size": "8",
        "--learning-rate": "0.01",
        "--max-length": "32",
    }


def test_same_run_is_the_same_in_any_order_and_place():
    options = {"r": 4, "alpha": 8.0}
    first = replace(REQUEST, options=options)
    second = replace(
        REQUEST,
        options=dict(reversed(options.items())),
        out=Path("elsewhere"),
        data_root="elsewhere",
        threads=3,
        overwrite=True,
    )
    assert first.command() != second.command()
    assert first.identity() == second.identity()
    assert replace(first, steps=None).identity() == replace(first, steps=None, epochs=3.0).identity()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 7}, "seed was 0 and is 7"),
        ({"options": {"r": 5}}, "options.r was 2 and is 5"),
        ({"text_column": "body"}, 'text_column was null and is "body"'),
        ({"reducer": {}}, "reducer was null and is {}"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_difference_of_two_runs_is_named(change, words):
    before, after = REQUEST.identity(), replace(REQUEST, **change).identity()
    assert list(differences(before, after)) == [words]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
_NAMES = st.text("abcdefgh_.", min_size=1)
_POSITIVE = st.floats(1e-9, 1e8)


_CHOSEN = {
    "scheduler": st.sampled_from(["linear", "cosine", "inverse_sqrt"]),
    "scoring": st.none() | st.sampled_from(["likelihood", "generated"]),
    "precision": st.sampled_from(["auto", "bf16"]),
    "lr_base_role": st.just("down"),
}


@st.composite
def requests(draw):
    """Any request: all its fields, of which some have their defaults."""
    values = {"model": draw(st.text()), "method": draw(st.text()), "out": Path("some/run")}
    optional = {
        "task": st.text(),
        "label_column": st.text(),
        "options": st.dictionaries(_NAMES, _VALUES, max_size=4),
        "seed": st.integers(0, 2**32 - 1),
        "learning_rate": _POSITIVE,
        "weight_decay": _POSITIVE,
        "warmup": st.floats(0, 1, exclude_max=True),
        "threads": st.none() | st.integers(1, 64),
        "hold_out": st.booleans(),
        "reducer": st.none() | st.sampled_from([{}, {"select": "random"}, {"active_fraction": 0.25}]),
        **_CHOSEN,
    }
    values |= draw(st.fixed_dictionaries({}, optional=optional))
    lengths = {"steps": st.integers(1, 10**9), "epochs": st.floats(1e-6, 1e6)}
    values |= draw(st.one_of(st.just({}), *(st.fixed_dictionaries({k: v}) for k, v in lengths.items())))
    rates = {
        "tlora_ratio": _POSITIVE,
        "loraplus_ratio": _POSITIVE,
        "lr_groups": st.dictionaries(st.sampled_from(["up", "core"]), _POSITIVE, min_size=1, max_size=1),
    }
    values |= draw(st.one_of(st.just({}), *(st.fixed_dictionaries({k: v}) for k, v in rates.items())))
    return RunRequest(**values)


@given(requests())
def test_command_is_read_by_the_command_line_as_the_request_that_wrote_it(request):
    program = click.Context(cli, **cli.context_settings)  # without it click remembers other help options
    context = command.make_context("train", list(request.command()[2:]), program)
    assert make_request(context, None) == request


def test_command_line_has_an_option_for_each_field_and_no_other():
    others = {"config", "print_config", "is_dry_run", "as_json", "reducer_switch", "debug"}
    options = {parameter.name for parameter in command.params} - others
    assert options == set(fields_of(RunRequest))


@given(requests())
def test_command_of_an_older_version_is_read_as_the_request_that_wrote_it(request):
    assert request_of_command(request.command()) == request


@given(requests())
def test_request_is_the_same_from_its_json(request):
    assert RunRequest(**json.loads(json.dumps(request.to_dict()))) == request


@given(requests())
def test_request_is_the_same_from_its_yaml(tmp_path_factory, request):
    file = tmp_path_factory.getbasetemp() / "request.yaml"
    file.write_text(request.to_yaml(), "utf-8")
    assert RunRequest(**read_yaml(RunRequest, file)) == request


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "'seed' is there twice, in what begins in line 1"),
        ("seed: 1\noptions:\n  r: 4\n  r: 8", "'r' is there twice, in what begins in line 3"),
        ("seed: !!int word", "invalid literal"),
        ("task: !!bool word", "word"),
        ("options: " + "[" * 5000, "recursion"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_says_something_twice_or_nothing_is_refused(tmp_path, text, message):
    file = tmp_path / "request.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(DataError, match=f"cannot read .*{message}.*; correct it"):
        read_yaml(RunRequest, file)


@pytest.mark.parametrize(
    "words", ["--modle minilm", "--model minilm --steps many", "--set r", "--model", "--seed 3"]
)
def test_command_of_another_version_is_refused(words):
    with pytest.raises(DataError, match="cannot read the command 'rankfold train"):
        request_of_command(("rankfold", "train", *words.split()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": -8}, "batch_size is -8; give a whole number above 0"),
        ({"split": "vaildation"}, "unknown split 'vaildation'. Did you mean 'validation'?"),
        ({"scoring": "generate"}, "unknown scoring 'generate'. Did you mean 'generated'?"),
        ({"model": 5}, "model is 5; give a text."),
        ({"device": "gpu"}, "unknown device 'gpu'."),
        ({"precision": "fp16"}, "precision 'fp16' is not offered, since its loss scaling"),
    ],
    ids=str,
)
def test_evaluation_is_refused_in_the_same_words(change, message):
    with pytest.raises(SpecError) as refusal:
        EvaluateRequest(**{"adapter": Path("runs/one"), "model": "minilm", **change})
    assert str(refusal.value).startswith(message)


def test_scorings_of_a_request_are_those_of_tasks():
    assert set(get_args(ScoringName)) == set(Scoring)
