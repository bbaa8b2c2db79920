"""Numbers as people write them: every format gives the value back, and two formats are never mixed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import DataError
from rankfold.tasks.data.labels import is_measured
from rankfold.tasks.data.numbers import NumberFormat, find_number_format, is_code_like

UNITS = ["", "%", "€", "kg", "EUR"]


def _write(number, decimal, group, unit):
    text = f"{number:,.2f}".translate(str.maketrans({",": group, ".": decimal}))
    return f"{text} {unit}".strip()


@given(
    numbers=st.lists(st.integers(-(10**9), 10**9).map(lambda n: n / 4), min_size=1),
    style=st.sampled_from([(".", ","), (",", "."), (".", "'"), (",", " "), (".", ""), (",", "\u202f")]),
    unit=st.sampled_from(UNITS),
)
def test_every_way_of_writing_is_read_back(numbers, style, unit):
    texts = [_write(number, *style, unit) for number in numbers]
    number_format = find_number_format(texts)
    assert [number_format.read(text) for text in texts] == numbers
    assert number_format.unit == unit


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["€ 12", "€7.5"], [12, 7.5]),
        (["12 %", "7%"], [12, 7]),
        (["-€5", "US$1,200.00"][:1], [-5]),
        (["\u22123", "+4", "1e-3"], [-3, 4, 0.001]),
        (["1.234.567", "1.000"], [1234567, 1000]),
        (["0,750", "1,250"], [0.75, 1.25]),
        ([f"{n},000" for n in range(1, 7)], [n * 1000 for n in range(1, 7)]),
    ],
)
def test_numbers_of_files_are_read(texts, values):
    number_format = find_number_format(texts)
    assert [number_format.read(text) for text in texts] == values


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["1,234.50", "1.234,50"], "'1,234.50' and '1.234,50'"),
        (["12 EUR", "$5"], "'12 EUR' and '[$]5'"),
        (["1,234"], "'1,234' could mean 1234 or 1.234; name .*--decimal"),
    ],
)
def test_numbers_that_could_mean_two_things_are_refused(texts, words):
    with pytest.raises(DataError, match=words):
        find_number_format(texts)


@pytest.mark.parametrize(("decimal", "value"), [(".", 1234.0), (",", 1.234)])
def test_decimal_separator_can_be_named(decimal, value):
    assert find_number_format(["1,234"], decimal).read("1,234") == value


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "nan", "inf", "Q1", "v1.2", "item 3", "1_000", "12:30", "1/2", "2024-01-05", "1,2,3"),
        *("12 - 15", "½", "0x10", "1" * 100, "a" * 100_000),
    ],
)
def test_other_texts_are_no_numbers(text):
    assert find_number_format([text]) is None
    assert NumberFormat().read(text) is None


@pytest.mark.parametrize(
    ("texts", "is_code"),
    [(["01", "1"], True), (["007", "12"], True), (["1.1", "1.10"], True), (["1.5", "2", "10"], False)],
)
def test_codes_are_told_from_numbers(texts, is_code):
    assert is_code_like(texts) is is_code


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([0, 1, 2] * 9, False),
        (["0", "1", "unknown"] * 9, False),
        (["1.1", "1.2", "1.10"] * 9, False),
        (["3 apples", "5 pears"] * 9, False),
        (["5 stars", "1 stars"] * 9, False),
        ([0.5, 3.0], True),
        ([f"{n}.5" for n in range(40)], True),
        ([*(f"{n}.5" for n in range(40)), "n/a", "", "-"], True),
        ([f"{n},{n:03d}" for n in range(100, 140)], True),
        ([f"€ {n}" for n in range(40)], True),
        (["1,234.50", "1.234,50"] * 30 + [f"{n}.5" for n in range(40)], True),
        ([f"title {n}" for n in range(40)], False),
        ([f"{n}" for n in range(40)], False),
    ],
)
def test_measurements_are_told_from_classes(values, answer):
    assert is_measured(values, "label") is answer


@pytest.mark.parametrize("values", [[0.0, 1.0], ["1.5", "2.0", "2.5"] * 9])
def test_numbers_that_could_be_classes_are_asked_about(values):
    with pytest.raises(DataError, match="--kind classification or --kind regression"):
        is_measured(values, "label")
