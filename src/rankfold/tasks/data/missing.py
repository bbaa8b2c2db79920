"""Missing values: rows without a text or a label, left out where the user says so."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.findings import Finding
from rankfold.tasks.data.labels import column_format
from rankfold.tasks.data.numbers import MISSING, MISSING_NUMBERS, is_missing
from rankfold.tasks.data.table import Row, Table, quote_list
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
