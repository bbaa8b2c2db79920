"""What a validation split keeps of each row; reading it takes no extra."""

import math
from collections.abc import Hashable, Sequence
from contextlib import suppress

from rankfold.errors import DataError
from rankfold.tasks.data.labels import column_format
from rankfold.tasks.data.numbers import NumberFormat
from rankfold.tasks.data.table import Rows

Stratum = object
"""What an automatic validation split keeps of a row: a label in proportion, or each of a set of labels."""


def value_strata(rows: Rows, column: str | None) -> list[Stratum]:
    """Return the values of a column as labels; None for each row where they are lists, or measured."""
    values = [None if column is None else row.get(column) for row in rows]
    is_label = all(isinstance(value, Hashable) for value in values) and not _is_measured(values, column)
    return values if is_label else [None] * len(rows)


def _is_measured(values: Sequence[object], column: str | None) -> bool:
    """Whether values are of a measurement: many different numbers, which may be written as texts.

    Whole numbers without a gap are ids of classes, however many there are, unless no two rows have the same.
    """
    number_format = NumberFormat()
    with suppress(DataError):
        number_format = column_format(values, column or "") or number_format
    numbers = {number for value in values if (number := number_format.read(value)) is not None}
    if len(numbers) <= math.sqrt(len(values)):
        return False
    has_gaps = max(numbers) - min(numbers) >= len(numbers)
    return has_gaps or len(numbers) == len(values) or not all(number.is_integer() for number in numbers)
