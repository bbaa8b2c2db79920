"""What a run is asked to do: numbers that make sense, and the words that repeat it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from rankfold.bench.request import RunRequest, without_places
from rankfold.errors import SpecError

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


def test_same_run_is_the_same_in_any_order_and_place(request_):
    options = {"r": 4, "alpha": 8.0}
    first = replace(request_, options=options)
    second = replace(
        request_,
        options=dict(reversed(options.items())),
        out=request_.out / "other",
        threads=3,
        overwrite=True,
    )
    assert first.command() != second.command()
    assert without_places(first.command()) == without_places(second.command())
    for change in ({"seed": 7}, {"options": {"r": 5, "alpha": 8.0}}, {"steps": 9}):
        assert without_places(replace(first, **change).command()) != without_places(first.command())
    assert without_places(replace(first, seed=7).command(), "--seed") == without_places(
        first.command(), "--seed"
    )
