"""A validation split for data that has none."""

import math
import random
from collections import defaultdict

from rankfold.errors import DataError
from rankfold.train.data import Row, Rows, Table

HOLD_OUT_FRACTION = 0.1
_SEED = 0


def hold_out(table: Table, label_column: str | None) -> tuple[Table, Table]:
    """Cut a tenth of the rows off as validation, the same for the same rows every time.

    Each label keeps its share; a label with one row stays in the training part.

    Args:
        table: At least two rows.
        label_column: The column whose values are kept in proportion; None for rows without labels.

    Raises:
        DataError: If there are too few rows to hold any out.
    """
    rows = table.rows
    groups = _groups(rows, label_column)
    if len(groups) > math.sqrt(len(rows)):  # values of a measurement, not labels
        groups = _groups(rows, None)
    generator = random.Random(_SEED)  # noqa: S311 (a split is no secret)
    held: set[int] = set()
    for indices in groups.values():
        generator.shuffle(indices)
        count = max(1, round(HOLD_OUT_FRACTION * len(indices)))
        held.update(indices[: min(count, len(indices) - 1)])
    if not held:
        raise DataError(
            f"{len(rows)} rows are too few to cut a validation split from; add a validation split."
        )
    return table.part(index for index in range(len(rows)) if index not in held), table.part(sorted(held))


def _groups(rows: Rows, label_column: str | None) -> dict[object, list[int]]:
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[_value(row, label_column)].append(index)
    return groups


def _value(row: Row, column: str | None) -> object:
    return None if column is None else row.get(column)
