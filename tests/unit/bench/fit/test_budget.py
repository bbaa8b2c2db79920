"""A budget is read as people write it, and its limits hold together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.bench.fit.budget import Budget, Size, parse_bytes, parse_count, parse_step, stored_bytes
from rankfold.errors import SpecError


@pytest.mark.parametrize(
    ("text", "value"),
    [("60k", 60_000), ("1.5M", 1_500_000), ("60000", 60_000), (" 2 K ", 2_000), ("1g", 10**9)],
)
def test_count_is_read_in_thousands(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("128KB", 128_000),
        ("128kb", 128_000),
        ("1MiB", 2**20),
        ("1.5KiB", 1536),
        ("99", 99),
        ("2M", 2_000_000),
    ],
)
def test_bytes_are_read_in_thousands_and_in_powers_of_two(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("1.1x", 1.1), ("1.1", 1.1), ("2X", 2.0)])
def test_step_is_read_as_a_multiple(text, value):
    assert parse_step(text) == value


@pytest.mark.parametrize("parse", [parse_count, parse_bytes, parse_step])
@pytest.mark.parametrize("text", ["", "k", "-5", "ten", "1,000", "5 QB", "1e5", "nan"])
def test_what_cannot_be_read_is_named_with_an_example(parse, text):
    with pytest.raises(SpecError, match=f"'{text}' is no .*; write it as"):
        parse(text)


@given(whole=st.integers(1, 10**9))
def test_whole_numbers_are_read_as_they_are(whole):
    assert parse_count(str(whole)) == parse_bytes(str(whole)) == whole


@pytest.mark.parametrize("limits", [{}, {"params": 0}, {"bytes": 0}, {"step": 0.0}], ids=str)
def test_budget_that_allows_nothing_is_refused(limits):
    with pytest.raises(SpecError, match=r"no budget|more than 0"):
        Budget(**limits)


@given(
    params=st.integers(1, 1000),
    size_bytes=st.integers(1, 1000),
    step=st.floats(0.1, 4),
    base=st.floats(0, 0.1),
)
def test_size_fits_if_it_is_within_every_limit(params, size_bytes, step, base):
    size = Size(numbers=params, bytes=4 * params, step=step, base_step=base)
    budget = Budget(params=500, bytes=size_bytes * 4, step=1.5)
    assert (budget.use(size) <= 1) == (params <= 500 and params <= size_bytes and step <= 1.5)


def test_use_of_time_is_what_comes_on_top_of_the_frozen_base():
    size = Size(numbers=1, bytes=4, step=1.0, base_step=0.9)
    assert Budget(step=1.1).use(size) == pytest.approx(0.5)
    assert Budget(step=0.95).use(size) > 1
    assert Budget(step=0.9).use(size) > 1


def test_bytes_are_those_of_the_type_and_few_numbers_and_routers_are_exact():
    tensors = [("down", 64), ("core", 33), ("scale", 1), ("router", 64)]
    assert stored_bytes(tensors) == 4 * 162
    assert stored_bytes(tensors, "fp16") == 2 * 162
    assert stored_bytes(tensors, "int4") == (32 + 2 * 2) + (17 + 2 * 2) + 4 + 4 * 64
    assert stored_bytes(tensors, "int8") == (64 + 2 * 2) + (33 + 2 * 2) + 4 + 4 * 64


def test_budget_says_all_its_limits():
    text = Budget(params=60_000, bytes=128_000, step=1.1).text()
    assert text == "60,000 trained parameters and 128,000 bytes and 1.1x the step of LoRA"
