"""A validation split for data that has none."""

import math
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from itertools import combinations
from typing import Any, cast

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.labels import column_format
from rankfold.tasks.data.numbers import NumberFormat
from rankfold.tasks.data.table import Finding, Row, Rows, Table
from rankfold.tasks.data.texts import text_names

HOLD_OUT_FRACTION = 0.1
_SEED = 0
# Into how many parts groups are dealt out, of which one is held out: a tenth, or more if groups are few.
_PARTS = (10, 5, 3, 2)

Stratum = object
"""What an automatic validation split keeps of a row: a label in proportion, or each of a set of labels."""


def hold_out(
    table: Table,
    strata: Sequence[Stratum],
    group_column: str | None = None,
    keys: Sequence[str] | None = None,
) -> tuple[Table, Table]:
    """Cut a tenth of the rows off as validation, the same for the same rows every time.

    Each label keeps its share; a label with one row stays in the training part. So does one row of each label
    where rows have sets of them. Rows with the same key stay together. With groups, each is in one part as a
    whole; labels keep their shares as well as that allows, and a label with one group stays in the training
    part.

    Args:
        table: At least two rows.
        strata: For each row its label, a set of labels, or None if it may go anywhere.
        group_column: The column of groups that are not divided; None if every row may go anywhere.
        keys: A text for each row that is equal for rows with the same content; None if all are different.
            Groups go before it.

    Raises:
        DataError: If there are too few rows or groups to hold any out, or a row has no group.
    """
    if group_column is None:
        units = list(range(len(strata))) if keys is None else keys
        held_rows = _held_rows(strata, units)
    else:
        labels = [None if isinstance(stratum, frozenset) else stratum for stratum in strata]
        units = groups_of(table, group_column)
        held_rows = _held_groups(labels, units, group_column)
    held_rows -= _last_rows(strata, units, held_rows)
    if not held_rows:
        raise DataError(
            f"the data has {len(strata)} row(s) with {len(set(strata))} different label(s), too few "
            "to cut a validation split from; add a validation split."
        )
    rows = range(len(strata))
    return table.part(row for row in rows if row not in held_rows), table.part(sorted(held_rows))


def _held_rows(strata: Sequence[Stratum], keys: Sequence[Hashable]) -> set[int]:
    generator = random.Random(_SEED)  # noqa: S311 (a split is no secret)
    held_rows: set[int] = set()
    for copies in _copies_by_label(strata, keys).values():
        generator.shuffle(copies)
        held_rows.update(_held_copies(copies))
    return held_rows


def _last_rows(strata: Sequence[Stratum], units: Sequence[Hashable], held_rows: Set[int]) -> set[int]:
    """Return the held rows that have a label of a set that no row outside has, with their units."""
    sets = {
        row: cast("frozenset[str]", part) for row, part in enumerate(strata) if isinstance(part, frozenset)
    }
    outside = {label for row, labels in sets.items() if row not in held_rows for label in labels}
    last = {row for row in held_rows if sets.get(row, frozenset()) - outside}
    last_units = {units[row] for row in last}
    return {row for row in held_rows if units[row] in last_units}


def _copies_by_label(
    strata: Sequence[Stratum], keys: Sequence[Hashable]
) -> dict[Stratum, list[Sequence[int]]]:
    """Return the rows of each label, those with the same key as one item, and those with sets as of one.

    Copies that differ in their label are left out: they stay in the training part, since a label may have no
    other rows.
    """
    copies: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        copies[key].append(row)
    by_label: defaultdict[Stratum, list[Sequence[int]]] = defaultdict(list)
    for rows in copies.values():
        labels = {None if isinstance(strata[row], frozenset) else strata[row] for row in rows}
        if len(labels) == 1:
            by_label[labels.pop()].append(rows)
    return by_label


def _held_copies(copies: Sequence[Sequence[int]]) -> list[int]:
    """Return a tenth of the rows, of one item at least if there are two; too large items are passed over."""
    count = max(1, round(HOLD_OUT_FRACTION * sum(map(len, copies))))
    held_rows: list[int] = []
    for rows in copies[: len(copies) - 1]:
        if len(held_rows) + len(rows) <= count:
            held_rows += rows
    return held_rows or [*min(copies[: len(copies) - 1], key=len, default=())]


def _held_groups(labels: Sequence[object], groups: Sequence[str], column: str) -> set[int]:
    """Return the rows of the groups to hold out: a part that is as much as can be like a tenth of the rows.

    A validation split of one class measures nothing, so the part has every label that more than one group
    has, and is larger than a tenth where no tenth has.
    """
    totals = Counter(labels)
    owners = Counter(label for label, _ in set(zip(labels, groups, strict=True)))
    needed_labels = {label for label, count in owners.items() if count > 1}

    def unlikeness(part: Sequence[int]) -> tuple[int, float]:
        counts = Counter(labels[row] for row in part)
        missing = len(needed_labels - counts.keys())
        return missing, sum(abs(counts[label] - HOLD_OUT_FRACTION * total) for label, total in totals.items())

    best: list[int] = []
    for count in _PARTS:
        parts = [part for part in _dealt(labels, groups, count) if part and _leaves_some(part, labels)]
        best = min(filter(None, [best, *parts]), key=unlikeness, default=best)
        if best and not unlikeness(best)[0]:
            return set(best)
    if not best:
        raise DataError(
            f"'{column}' has {len(set(groups))} groups, too few to hold any out and keep all labels; "
            "add groups, name another column with --group-column, or add a validation split."
        )
    return set(best)


def _leaves_some(part: Sequence[int], labels: Sequence[object]) -> bool:
    """Whether every label has a row outside the part."""
    held_rows = set(part)
    return {labels[row] for row in range(len(labels)) if row not in held_rows} == set(labels)


def _dealt(labels: Sequence[object], groups: Sequence[str], count: int) -> list[list[int]]:
    """Deal the groups out into so many parts with alike labels; none if there are too few."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    targets = [numbers[label] for label in labels]
    if count > min(len(set(groups)), max(Counter(targets).values())):
        return []
    from sklearn.model_selection import StratifiedGroupKFold  # of an extra, and slow to import

    dealer = cast(Any, StratifiedGroupKFold)(count, shuffle=True, random_state=_SEED)
    with warnings.catch_warnings():
        # It warns of labels with fewer rows than parts, which cannot be everywhere.
        warnings.simplefilter("ignore", UserWarning)
        return [part.tolist() for _, part in dealer.split(targets, targets, groups)]


_USUAL = frozenset(
    {
        *("speaker", "subject", "patient", "participant", "person", "user", "author", "client"),
        *("interview", "interviewee", "session", "document", "doc"),
    }
)
"""What columns of groups are called, without "_id"."""

_QUOTED_GROUPS = 3


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


def groups_of(table: Table, column: str) -> list[str]:
    """Return the group of each row, as text, so that 7 and "7" are one group.

    Raises:
        DataError: If a row has none.
    """
    return [_group_of(row, column, table.locate(index)) for index, row in table.enumerate_rows()]


def _group_of(row: Row, column: str, place: str) -> str:
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():  # how a column with gaps is read
        value = int(value)
    if value is None or value == "" or isinstance(value, float):
        raise DataError(f"{place} has no group in '{column}' (it holds '{value}'); mend or remove the row.")
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
    for first, second in combinations(groups, 2):
        common_groups = [group for group in groups[first] if group in groups[second]]
        if common_groups:
            raise DataError(
                f"{_quote_groups(common_groups)} of '{column}' are in the split '{first}' and in '{second}'; "
                "keep each group in one split, or let --hold-out cut the training split by group."
            )


def recommend_groups(splits: Mapping[str, Table], columns: Columns) -> list[Finding]:
    """Return a remark for each column that is called like one of groups and has values in two splits.

    Args:
        splits: Tables by split name.
        columns: Those that are read; a column that is read already is no column of groups.
    """
    first_row = next(iter(splits.values())).rows[0]
    read = {*text_names(columns.text, first_row), *text_names(columns.pair, first_row), columns.label}
    findings: list[Finding] = []
    for column in first_row:
        if column in read or not _is_usual(column):
            continue
        for first, second in combinations(splits, 2):
            values = _values(splits[second].rows, column)
            common_groups = [value for value in _values(splits[first].rows, column) if value in values]
            if common_groups:
                message = (
                    f"{_quote_groups(common_groups)} of '{column}' are in the split '{first}' and in "
                    f"'{second}'; if their rows are alike, the score is too good, and "
                    f"--group-column {column} keeps them apart."
                )
                findings.append(Finding("groups", message))
                break
    return findings


def _values(rows: Rows, column: str) -> dict[str, None]:
    return dict.fromkeys(str(row[column]) for row in rows if row.get(column) not in (None, ""))


def _is_usual(column: str) -> bool:
    letters = "".join(letter for letter in column.lower() if letter.isalnum())
    return letters in _USUAL or letters.removesuffix("id") in _USUAL


def _quote_groups(groups: Iterable[str]) -> str:
    names = [f"'{group}'" for group in groups]
    rest_count = len(names) - _QUOTED_GROUPS
    return ", ".join(names[:_QUOTED_GROUPS]) + (f" and {rest_count} more" if rest_count > 0 else "")
