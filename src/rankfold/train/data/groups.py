"""Groups of rows: those of one person or document, which must not be on both sides of a split."""

import logging
from collections.abc import Iterable, Mapping
from itertools import combinations

from rankfold.errors import DataError
from rankfold.train.data.columns import Columns
from rankfold.train.data.read import Row, Rows, Table

logger = logging.getLogger("rankfold.train")

_USUAL = frozenset(
    {
        *("speaker", "subject", "patient", "participant", "person", "user", "author", "client"),
        *("interview", "interviewee", "session", "document", "doc"),
    }
)
"""What columns of groups are called, without "_id"."""

_SHOWN = 3


def groups_of(table: Table, column: str) -> list[str]:
    """Return the group of each row, as text, so that 7 and "7" are one group.

    Raises:
        DataError: If a row has none.
    """
    return [_group_of(row, column, place) for place, row in table.numbered()]


def _group_of(row: Row, column: str, place: int) -> str:
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():  # how a column with gaps is read
        value = int(value)
    if value is None or value == "" or isinstance(value, float):
        raise DataError(
            f"row {place + 1} has no group in '{column}' (it holds '{value}'); mend or remove the row."
        )
    return str(value)


def check_groups(splits: Mapping[str, Table], column: str) -> None:
    """Check that no group is in two splits.

    Args:
        splits: Tables by split name.
        column: Where the groups are.

    Raises:
        DataError: If one is, or a row has none.
    """
    groups = {split: dict.fromkeys(groups_of(table, column)) for split, table in splits.items()}
    for one, other in combinations(groups, 2):
        shared = [group for group in groups[one] if group in groups[other]]
        if shared:
            raise DataError(
                f"{_listed(shared)} of '{column}' are in the split '{one}' and in '{other}'; "
                "keep each group in one split, or let --hold-out cut the training split by group."
            )


def recommend_groups(splits: Mapping[str, Table], columns: Columns) -> None:
    """Log a note if a column that is called like one of groups has the same values in two splits.

    Args:
        splits: Tables by split name.
        columns: What is read; a column that is read already is no column of groups.
    """
    for column in next(iter(splits.values())).rows[0]:
        if column in (columns.text, columns.pair, columns.label) or not _is_usual(column):
            continue
        for one, other in combinations(splits, 2):
            values = _values(splits[other].rows, column)
            shared = [value for value in _values(splits[one].rows, column) if value in values]
            if shared:
                logger.info(
                    "%s of '%s' are in the split '%s' and in '%s'; if their rows are alike, the score is "
                    "too good, and --group-column %s keeps them apart.",
                    *(_listed(shared), column, one, other, column),
                )
                break


def _values(rows: Rows, column: str) -> dict[str, None]:
    return dict.fromkeys(str(row[column]) for row in rows if row.get(column) not in (None, ""))


def _is_usual(column: str) -> bool:
    letters = "".join(letter for letter in column.lower() if letter.isalnum())
    return letters in _USUAL or letters.removesuffix("id") in _USUAL


def _listed(groups: Iterable[str]) -> str:
    names = [f"'{group}'" for group in groups]
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
