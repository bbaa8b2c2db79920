"""An unknown name is answered with the nearest known one."""

import pytest

from rankfold.errors import unknown_name
from rankfold.presets import discover
from rankfold.runs.methods import peft_methods

METHODS = sorted({*discover(), *peft_methods()})


def swap_letters(name, index):
    """The name with two neighbouring letters in the wrong order."""
    return name[:index] + name[index + 1] + name[index] + name[index + 2 :]


@pytest.mark.parametrize("method", METHODS)
def test_unknown_name_suggests_the_name_whose_letters_were_swapped(method):
    start = method.find(":") + 1
    for index in range(start, len(method) - 1):
        wrong = swap_letters(method, index)
        if wrong not in METHODS:
            assert f"Did you mean '{method}'?" in str(unknown_name("method", wrong, METHODS))


@pytest.mark.parametrize("method", METHODS)
def test_unknown_name_suggests_the_name_that_differs_in_capitals_and_hyphens_alone(method):
    for written in (method.upper(), method.title(), method.replace("_", "-")):
        if written not in METHODS:
            assert f"Did you mean '{method}'?" in str(unknown_name("method", written, METHODS))


@pytest.mark.parametrize("wrong", ["rank", "lora_r", "Rank"])
def test_unknown_option_that_other_programs_have_suggests_its_name_here(wrong):
    message = str(unknown_name("option", wrong, ["r", "rank_pattern", "alpha"]))
    assert "Did you mean 'r'?" in message


def test_unknown_name_suggests_nothing_when_nothing_is_near():
    assert str(unknown_name("split", "xyz", ["train"])) == "unknown split 'xyz'. Available: train."
    assert str(unknown_name("metric", "xyz", [])) == "unknown metric 'xyz'. Available: none."


def test_unknown_name_stands_before_what_it_belongs_to():
    assert str(unknown_name("option of method 'lora'", "kk", ["r"])).startswith(
        "unknown option 'kk' of method 'lora'."
    )
