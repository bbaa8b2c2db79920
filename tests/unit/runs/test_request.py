"""What a run is asked to do: numbers that make sense, and the words that repeat it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import DataError, SpecError
from rankfold.runs.identity import differences, question_of
from rankfold.runs.request import RunRequest

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
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused(change):
    with pytest.raises(SpecError):
        replace(REQUEST, **change)


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
    assert question_of(first) == question_of(second)
    assert question_of(replace(first, steps=None)) == question_of(replace(first, steps=None, epochs=3.0))


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
    then, now = question_of(REQUEST), question_of(replace(REQUEST, **change))
    assert list(differences(then, now)) == [words]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
_NAMES = st.text("abcdefgh_.", min_size=1)
_POSITIVE = st.floats(1e-9, 1e9)


@given(
    st.fixed_dictionaries(
        {"model": st.text(), "method": st.text(), "out": st.just(Path("some/run"))},
        optional={
            "task": st.text(),
            "label_column": st.text(),
            "options": st.dictionaries(_NAMES, _VALUES, max_size=4),
            "seed": st.integers(0, 2**32 - 1),
            "steps": st.integers(1, 10**9),
            "learning_rate": _POSITIVE,
            "weight_decay": _POSITIVE,
            "lr_groups": st.dictionaries(st.sampled_from(["up", "core"]), _POSITIVE, max_size=1),
            "threads": st.none() | st.integers(1, 64),
            "hold_out": st.booleans(),
            "resume": st.just(value=False),
            "reducer": st.none() | st.sampled_from([{}, {"select": "random"}, {"active_fraction": 0.25}]),
        },
    )
)
def test_command_is_read_as_the_request_that_wrote_it(values):
    request = RunRequest(**values)
    assert RunRequest.of_command(request.command()) == request


@pytest.mark.parametrize(
    "words", ["--modle minilm", "--model minilm --steps many", "--set r", "--model", "--seed 3"]
)
def test_command_of_another_version_is_refused(words):
    with pytest.raises(DataError, match="cannot read the command 'rankfold train"):
        RunRequest.of_command(("rankfold", "train", *words.split()))
