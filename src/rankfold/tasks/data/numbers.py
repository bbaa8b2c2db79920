"""Numbers that people write: with separators of thousands, a decimal comma, a currency or a unit.

A column is read by one format, which has to fit every value in it: "1,234.50" and "1.234,50" never mean the
same, and a column that has both has no format.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rankfold.errors import DataError

Decimal = Literal[".", ","]

MISSING = frozenset({"", "nan", "null", "n/a", "#n/a", "<na>", "nat"})
"""Texts, in lower case, that programs write where a value is missing."""

MISSING_NUMBERS = MISSING | {"na", "none", "-", "--", "?", ".", "unknown", "missing"}
"""Texts, in lower case, that mean a missing value among numbers; among names each could be a class."""

_SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f"), " ")
_SIGNS = {ord("\u2212"): "-", ord("\u2019"): "'", ord("\u066b"): ".", ord("\u066c"): ","}
_BODY = r"[+-]?[0-9.,' ]*[0-9][0-9.,' ]*(?:[eE][+-]?[0-9]+)?"
_TEXT = re.compile(rf"(?P<prefix>[^0-9.,'+\- ]*) *(?P<body>{_BODY}?) *(?P<suffix>[^0-9.,' ][^0-9]*)?")
_CURRENCY_CODE = re.compile(r"[A-Z]{3}")
_UNIT_LETTERS = 8
# A point with three digits behind it, and one to three before it: it may separate either.
_THOUSANDS = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}\.[0-9]{3}(?![0-9.])")
_MAX_LENGTH = 64
# So many values with one comma before three digits are no coincidence: the comma separates thousands.
_SURE = 5


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How the numbers of a column are written.

    Args:
        decimal: The decimal separator.
        group: The separator of thousands; "" if there is none.
        unit: A currency, "%" or a unit that stands at every number; "" if none does.
    """

    decimal: Decimal = "."
    group: str = ""
    unit: str = ""

    def read(self, value: object) -> float | None:
        """Return a number, or a text in this format, as a finite number; None for anything else."""
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return _finite(value)
        parts = _split(value) if isinstance(value, str) else None
        if parts is None or parts[1] not in ("", self.unit):
            return None
        return self._number(parts[0])

    def fits(self, body: str) -> bool:
        """Return whether a number without its unit is written in this format."""
        return self._number(body) is not None

    def explain(self, column: str, texts: Sequence[str]) -> str:
        """Return how the numbers of a column are read, in a sentence; "" if there is nothing to say.

        Args:
            column: Its name.
            texts: The numbers as they are written, at least one.
        """
        notes: list[str] = []
        example = texts[0]
        with_point = [text for text in texts if "." in text]
        if self.decimal == "." and with_point and all(map(_THOUSANDS.search, with_point)):
            example = with_point[0]
            notes.append("a point separates decimals (give --decimal , if it separates thousands)")
        if self.group:
            name = {" ": "a space", "'": "an apostrophe", ",": "a comma", ".": "a point"}[self.group]
            notes.append(f"{name} separates thousands")
        if self.decimal == ",":
            notes.append("a comma separates decimals")
        if self.unit:
            notes.append(f"'{self.unit}' is the unit")
        if not notes:
            return ""
        reading = f"'{example}' is read as {self.read(example):.12g}"
        return f"the numbers in '{column}': {', '.join(notes)}; {reading}."

    def _number(self, body: str) -> float | None:
        match = _pattern(self.decimal, self.group).fullmatch(body)
        if match is None:
            return None
        plain = body.replace(self.group, "") if self.group else body
        return _finite(float(plain.replace(self.decimal, ".")))


def find_number_format(
    texts: Iterable[str], decimal: Decimal | None = None, quote: Callable[[str], str] = "'{}'".format
) -> NumberFormat | None:
    """Return the one format in which all texts are numbers; None if some are none.

    Args:
        texts: At least one.
        decimal: The decimal separator, if somebody has named it.
        quote: Returns a text as messages quote it, perhaps with its place.

    Raises:
        DataError: If the texts are numbers in two formats that give different values, or each is a number but
            no format fits all.
    """
    different = list(dict.fromkeys(texts))
    parts = [part for text in different if (part := _split(text)) is not None]
    if len(parts) < len(different):
        return None
    units = {unit for _, unit in parts}
    bodies = [body for body, _ in parts]
    formats = [
        NumberFormat(separator, group, parts[0][1])
        for separator in (".", ",")
        for group in ("", ",", ".", "'", " ")
        if group != separator and decimal in (None, separator)
    ]
    fitting = [item for item in formats if all(map(item.fits, bodies))]
    # A group that is never used is no part of the format.
    fitting = [item for item in fitting if not item.group or any(item.group in body for body in bodies)]
    if len(units) > 1 or not fitting:
        if all(any(item.fits(body) for item in formats) for body in bodies):
            raise _mixed_formats(different, parts, quote)
        return None
    return _unambiguous(fitting, bodies)


def is_number_text(text: str) -> bool:
    """Return whether a text is a number in some format."""
    try:
        return find_number_format([text]) is not None
    except DataError:  # in two formats
        return True


def is_code_like(texts: Iterable[str]) -> bool:
    """Return whether texts of digits are codes rather than numbers: two of them are the same number.

    Such are "01" beside "1", or "1.1" beside "1.10".
    """
    different = set(texts)
    plain = NumberFormat()
    numbers = {plain.read(text) for text in different}
    return len(numbers) < len(different) or any(re.fullmatch(r"0[0-9]+", text) for text in different)


def is_missing(value: object, words: frozenset[str] = MISSING) -> bool:
    """Return whether a value is missing: nothing, NaN, or a word that stands for it."""
    if isinstance(value, str):
        return value.strip().lower() in words
    return value is None or value != value  # noqa: PLR0124 (only NaN differs from itself)


def _unambiguous(formats: Sequence[NumberFormat], bodies: Sequence[str]) -> NumberFormat:
    """Return the format that is meant of those that fit.

    A point alone is a decimal point, as in every program; a comma alone that stands before three digits each
    time separates thousands if that is so often enough.
    """
    readings = {tuple(map(item.read, bodies)): item for item in reversed(formats)}
    if len(readings) == 1 or formats[0] == NumberFormat(unit=formats[0].unit):
        return formats[0]
    thousands = next((item for item in formats if item.decimal == "." and item.group == ","), None)
    if thousands is not None and sum("," in body for body in bodies) >= _SURE:
        return thousands
    example = next(body for body in bodies if len({item.read(body) for item in formats}) > 1)
    values = " or ".join(f"{value:.12g}" for value in dict.fromkeys(_numbers(formats, example)))
    raise DataError(
        f"'{example}' could mean {values}; name the decimal separator with --decimal '.' or --decimal ','."
    )


def _numbers(formats: Sequence[NumberFormat], body: str) -> list[float]:
    return [number for item in formats if (number := item.read(body)) is not None]


def _mixed_formats(
    texts: Sequence[str], parts: Sequence[tuple[str, str]], quote: Callable[[str], str]
) -> DataError:
    first_body, first_unit = parts[0]
    formats = [NumberFormat(decimal, group) for decimal in (".", ",") for group in ("", ",", ".", "'", " ")]
    own = [item for item in formats if item.fits(first_body)]
    other = next(
        (
            text
            for text, (body, unit) in zip(texts, parts, strict=True)
            if unit != first_unit or not any(item.fits(body) for item in own)
        ),
        texts[-1],
    )
    return DataError(
        f"the numbers are written in different ways, such as {quote(texts[0])} and {quote(other)}; "
        "write all with the same separators and the same unit."
    )


def _split(text: str) -> tuple[str, str] | None:
    """Return a text as the body of a number and its unit; None if it is no number with a unit."""
    if len(text) > _MAX_LENGTH:
        return None
    plain = text.translate(_SPACES | _SIGNS).strip()
    if not plain.isascii():  # digits of other scripts
        plain = "".join(str(unicodedata.decimal(letter, letter)) for letter in plain)
    sign = "-" if plain.startswith("-") and plain[1:2] and not plain[1].isdigit() else ""  # -€5
    match = _TEXT.fullmatch(plain.removeprefix(sign).strip() if sign else plain)
    if match is None:
        return None
    prefix, suffix = match["prefix"].strip(), (match["suffix"] or "").strip()
    if (prefix and suffix) or (prefix and not _is_currency(prefix)) or not _is_unit(suffix):
        return None
    return sign + match["body"].strip(), prefix or suffix


def _is_currency(text: str) -> bool:
    return _CURRENCY_CODE.fullmatch(text) is not None or any(unicodedata.category(c) == "Sc" for c in text)


def _is_unit(text: str) -> bool:
    return len(text) <= _UNIT_LETTERS and all(
        letter.isalpha() or letter in "%‰°/²³" or unicodedata.category(letter) == "Sc" for letter in text
    )


def _pattern(decimal: str, group: str) -> re.Pattern[str]:
    whole = rf"[1-9][0-9]{{0,2}}(?:{re.escape(group)}[0-9]{{3}})+|[0-9]+" if group else r"[0-9]+"
    point = re.escape(decimal)
    return re.compile(rf"[+-]?(?:(?:{whole})(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
