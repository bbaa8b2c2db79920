"""Odd rows: those without a text or a label, left out where the user says so, and those that come twice."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.labels import column_format
from rankfold.tasks.data.numbers import MISSING, MISSING_NUMBERS, is_missing
from rankfold.tasks.data.picture_columns import picture_digests
from rankfold.tasks.data.table import Finding, Row, Table, quote_list
from rankfold.tasks.data.texts import text_names


def drop_missing(
    tables: Mapping[str, Table], columns: Columns, *, takes_empty_labels: bool = False
) -> tuple[dict[str, Table], list[Finding]]:
    """Return the tables without the rows that lack a text or a label, and a finding for each that had some.

    Among numbers words such as "n/a", "none" or "-" are missing values; among names only those are that
    programs write, such as "nan".

    Args:
        tables: By split name.
        columns: The columns to read.
        takes_empty_labels: Whether an empty label is one, that of no class.

    Raises:
        DataError: If no row of a split is left.
    """
    words = {name: MISSING for name in (columns.text, columns.pair, columns.picture) if name is not None}
    if columns.label is not None:
        words[columns.label] = _label_words(tables, columns.label) - ({""} if takes_empty_labels else set())
    whole: dict[str, Table] = {}
    findings: list[Finding] = []
    for split, table in tables.items():
        places = [place for place, row in enumerate(table.rows) if not _missing_columns(row, words)]
        whole[split] = table if len(places) == len(table.rows) else _part(table, places)
        if len(places) < len(table.rows):
            findings.append(_finding(split, table, words, len(table.rows) - len(places)))
        if not places:
            raise DataError(
                f"every row of the split '{split}' lacks {quote_list(words, ' or ')}; name the columns with "
                "--text-column and --label-column."
            )
    return whole, findings


def _part(table: Table, places: Sequence[int]) -> Table:
    indices = table.indices or range(len(table.rows))
    return replace(
        table, rows=[table.rows[place] for place in places], indices=[indices[place] for place in places]
    )


def _label_words(tables: Mapping[str, Table], column: str) -> frozenset[str]:
    values = [row.get(column) for table in tables.values() for row in table.rows]
    try:
        is_number = column_format(values, column) is not None
    except DataError:  # numbers in two formats
        is_number = True
    return MISSING_NUMBERS if is_number else MISSING


def _missing_columns(row: Row, words: Mapping[str, frozenset[str]]) -> list[str]:
    """Return the columns that have no value; of several that are joined to one text none has."""
    return [
        columns
        for columns, missing in words.items()
        if all(is_missing(row.get(name), missing) for name in text_names(columns, row))
    ]


def _finding(split: str, table: Table, words: Mapping[str, frozenset[str]], count: int) -> Finding:
    positions = [position for position, row in enumerate(table.rows) if _missing_columns(row, words)]
    names = [name for row in table.rows for name in _missing_columns(row, words)]
    lacks = f"{count:,} of {len(table.rows):,} rows of the split '{split}' lack"
    return Finding(
        "dropped_rows",
        f"{lacks} {quote_list(dict.fromkeys(names), ' or ')} and are left out "
        f"({table.locate_rows(positions)}).",
    )


_IDS = ("id", "idx")
_QUOTED = 3


def content_keys(table: Table, columns: Columns) -> list[str]:
    """Return a text for each row that is equal for rows with the same content.

    The content is that of the text columns; of rows without them, such as conversations, all but ids and
    groups. Spaces at the ends make no difference.
    """
    if columns.picture is not None:
        # The same name may be of another picture in another folder.
        digests = picture_digests(table, columns.picture)
        rows = [{**row, columns.picture: digest} for row, digest in zip(table.rows, digests, strict=True)]
        return [_key(row, columns) for row in rows]
    return [_key(row, columns) for row in table.rows]


def _key(row: Row, columns: Columns) -> str:
    names = (*text_names(columns.text, row), *text_names(columns.pair, row))
    names += () if columns.picture is None else (columns.picture,)
    if not names:
        names = tuple(name for name in row if name not in (*_IDS, columns.group))
    values = [value.strip() if isinstance(value := row.get(name), str) else value for name in names]
    return json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)


def duplicate_findings(tables: Mapping[str, Table], columns: Columns, *, has_classes: bool) -> list[Finding]:
    """Return remarks on rows that are there twice: in a split, in two splits, or with another label.

    Args:
        tables: By split name.
        columns: Those that are read.
        has_classes: Whether labels are classes, of which a text has one; measurements may differ.
    """
    owners = {split: _owners(table, columns) for split, table in tables.items()}
    findings = [
        finding for split, table in tables.items() for finding in _within(split, table, owners[split])
    ]
    for first, second in combinations(tables, 2):
        findings += _between((first, second), tables, owners)
    if has_classes and columns.label is not None:
        for split, table in tables.items():
            findings += _conflicts(split, table, owners[split], columns.label)
    return findings


def _owners(table: Table, columns: Columns) -> dict[str, list[int]]:
    """Return the positions of the rows with each content, in order."""
    owners: defaultdict[str, list[int]] = defaultdict(list)
    for position, key in enumerate(content_keys(table, columns)):
        owners[key].append(position)
    return owners


def _within(split: str, table: Table, owners: Mapping[str, Sequence[int]]) -> Iterator[Finding]:
    copies = [positions for positions in owners.values() if len(positions) > 1]
    if copies:
        count = sum(len(positions) - 1 for positions in copies)
        pairs = [(table, positions[1], table, positions[0]) for positions in copies[:_QUOTED]]
        yield Finding(
            "duplicates",
            f"{count:,} of {len(table.rows):,} rows of the split '{split}' repeat an earlier one: "
            f"{_quote(pairs)}.",
        )


def _between(
    splits: tuple[str, str], tables: Mapping[str, Table], owners: Mapping[str, Mapping[str, Sequence[int]]]
) -> Iterator[Finding]:
    first, second = splits
    common = [key for key in owners[second] if key in owners[first]]
    if common:
        count = sum(len(owners[second][key]) for key in common)
        pairs = [
            (tables[second], owners[second][key][0], tables[first], owners[first][key][0])
            for key in common[:_QUOTED]
        ]
        yield Finding(
            "shared_rows",
            f"{count:,} of {len(tables[second].rows):,} rows of the split '{second}' are in '{first}' too, "
            f"so its score is too good: {_quote(pairs)}; remove them from one of the splits.",
        )


def _conflicts(
    split: str, table: Table, owners: Mapping[str, Sequence[int]], label: str
) -> Iterator[Finding]:
    groups = [
        positions
        for positions in owners.values()
        if len({str(table.rows[position].get(label)) for position in positions}) > 1
    ]
    if groups:
        rows = groups[0]
        labels = [str(table.rows[row].get(label)) for row in rows]
        other = next(place for place, name in enumerate(labels) if name != labels[0])
        first, second = (f"'{labels[place]}' in {table.locate_rows([rows[place]])}" for place in (0, other))
        yield Finding(
            "conflicting_labels",
            f"{len(groups):,} texts of the split '{split}' have different labels, such as {first} and "
            f"{second}; correct one of them.",
        )


def _quote(pairs: Sequence[tuple[Table, int, Table, int]]) -> str:
    """Return pairs of equal rows in words; a file that all of them are in is named once."""
    places = [
        (table.locate_rows([position]), other.locate_rows([earlier]))
        for table, position, other, earlier in pairs
    ]
    files = {place.partition(" of ")[2] for pair in places for place in pair}
    file = f" of {next(iter(files))}" if len(files) == 1 and "" not in files else ""
    return (
        ", ".join(f"{place.removesuffix(file)} is {earlier.removesuffix(file)}" for place, earlier in places)
        + file
    )
