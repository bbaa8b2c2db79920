"""Rows of a CSV or TSV file: every cell is a text, and every row has as many cells as the header."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from rankfold.errors import DataError
from rankfold.tasks.data.decode import MAX_LINE_BYTES, check_values, reason_of
from rankfold.tasks.data.table import FileRows, Finding, Row, quote_list

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")
_SAMPLE_CHARACTERS = 256 << 10
_SAMPLE_ROWS = 100
_QUOTED_LINES = 3


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How cells are separated and quoted."""

    delimiter: str
    has_quotes: bool = True
    skips_spaces: bool = False


@dataclass(frozen=True, slots=True)
class _Record:
    """The cells of one record, and the line on which it begins."""

    line: int
    cells: list[str]


def read_csv(text: str, name: str, delimiter: str | None, *, is_tsv: bool) -> FileRows:
    """Return the rows of a CSV file whose first line names the columns.

    Names lose spaces around them; a column without a name is called after its place. Cells stay as they are
    written. Without a delimiter, it is the one of comma, semicolon, tab and pipe that cuts the header and the
    first rows into equally many cells.

    Args:
        text: The content.
        name: The file in messages.
        delimiter: One character; found by the header if None.
        is_tsv: Whether the name of the file promises tabs.

    Raises:
        DataError: If a row has more or fewer cells than the header, a quotation mark is not closed, two
            columns have one name, or the delimiter cannot be told.
    """
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return _read(text, name, delimiter, is_tsv=is_tsv)
    finally:
        csv.field_size_limit(limit)


def _read(text: str, name: str, delimiter: str | None, *, is_tsv: bool) -> FileRows:
    if mark := _SEPARATOR_LINE.match(text):  # Excel's own first line
        delimiter, text = delimiter or mark[1], text[mark.end() - 1 :]
    delimiter = delimiter or _find_delimiter(text, name, is_tsv=is_tsv)
    check_values(f"'{name}'", text, f"{delimiter}\n")
    findings: list[Finding] = []
    if delimiter != ("\t" if is_tsv else ","):
        findings.append(Finding("delimiter", f"the cells of '{name}' are separated by {_plural(delimiter)}."))
    dialect = _Dialect(delimiter, skips_spaces=_header_has_spaces(text, delimiter))
    if delimiter == "\t" and not _has_quotes(text, name, dialect):
        dialect = _Dialect(delimiter, has_quotes=False)
        if '"' in text:
            findings.append(Finding("quotes", f"quotation marks in '{name}' are part of the texts."))
    records = list(_records(text, name, dialect))
    if not records:
        return FileRows([], findings=findings, is_typed=False)
    header = _header(records[0].cells, name)
    _check_widths(records[1:], header, name, delimiter)
    _check_no_header(records[1:], header, name)
    findings += _swallowed_rows(records[1:], len(header), name, delimiter)
    rows: list[Row] = [dict(zip(header, record.cells, strict=True)) for record in records[1:]]
    return FileRows(rows, [record.line for record in records[1:]], findings=findings, is_typed=False)


def _has_quotes(text: str, name: str, dialect: _Dialect) -> bool:
    """Return whether quotation marks quote cells; most programs that write tabs write them as they are.

    They do if the rows fit the header that way, and only that way, or if they fit both ways and no cell would
    have swallowed the end of a row with the beginning of another.
    """
    if '"' not in text:
        return False
    try:
        records = list(_records(text, name, dialect))
    except DataError:
        return False
    if len({len(record.cells) for record in records}) > 1:
        return False
    plain = _records(text, name, _Dialect(dialect.delimiter, has_quotes=False))
    if len({len(record.cells) for record in plain}) > 1:
        return True
    return not any("\n" in cell and "\t" in cell for record in records for cell in record.cells)


def _records(text: str, name: str, dialect: _Dialect, *, is_strict: bool = True) -> Iterator[_Record]:
    """Yield the records that are not blank.

    Raises:
        DataError: If a quotation mark is not closed, or not doubled within quotes.
    """
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.has_quotes else csv.QUOTE_NONE,
        skipinitialspace=dialect.skips_spaces,
        strict=is_strict,
    )
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) or len(cells) > 1:
                yield _Record(line, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"line {line} of '{name}' has a quotation mark that is not closed, or not doubled inside a cell "
            f'({reason_of(error)}); quote the whole cell, and write "" for a quotation mark in it.'
        ) from error


def _find_delimiter(text: str, name: str, *, is_tsv: bool) -> str:
    """Return the delimiter that gives the header and the first rows equally many cells, and the most.

    Raises:
        DataError: If two do, with equally many.
    """
    sample = text[:_SAMPLE_CHARACTERS]
    widths = {delimiter: _widths(sample, delimiter) for delimiter in _NAMES}
    candidates = {delimiter: counts for delimiter, counts in widths.items() if counts and counts[0] > 1}
    if (is_tsv and "\t" in candidates) or not candidates:
        return "\t" if is_tsv else ","
    scores = {delimiter: (len(set(counts)) == 1, counts[0]) for delimiter, counts in candidates.items()}
    best = [delimiter for delimiter, score in scores.items() if score == max(scores.values())]
    if len(best) > 1:
        raise DataError(
            f"the cells of '{name}' could be separated by {' or by '.join(map(_plural, best))}; "
            "say which with --delimiter."
        )
    return best[0]


def _widths(sample: str, delimiter: str) -> list[int]:
    """Return the numbers of cells of the first records; one that is cut off does not count."""
    counts: list[int] = []
    try:
        records = _records(sample, "", _Dialect(delimiter, has_quotes=delimiter != "\t"), is_strict=False)
        counts.extend(len(record.cells) for record in islice(records, _SAMPLE_ROWS + 1))
    except DataError:
        return counts
    return counts[:-1] if len(sample) == _SAMPLE_CHARACTERS and 1 < len(counts) <= _SAMPLE_ROWS else counts


def _header_has_spaces(text: str, delimiter: str) -> bool:
    """Return whether the header has a space after every delimiter, so that these belong to no cell."""
    header = text.lstrip().partition("\n")[0]
    count = header.count(delimiter)
    return not delimiter.isspace() and count > 0 and header.count(f"{delimiter} ") == count


def _header(cells: Sequence[str], name: str) -> list[str]:
    header = [cell.strip() or f"column {place}" for place, cell in enumerate(cells, 1)]
    duplicate_names = [column for column, count in Counter(header).items() if count > 1]
    if duplicate_names:
        raise DataError(
            f"the header of '{name}' has {quote_list(duplicate_names)} twice; rename one of the columns."
        )
    return header


def _check_widths(records: Sequence[_Record], header: Sequence[str], name: str, delimiter: str) -> None:
    misfits = [record for record in records if len(record.cells) != len(header)]
    if not misfits:
        return
    first = misfits[0]
    lines = [str(record.line) for record in misfits[1 : 1 + _QUOTED_LINES]]
    lines += ["…"] if len(misfits) > 1 + _QUOTED_LINES else []
    others = f" ({len(misfits) - 1} more misfit: line {', '.join(lines)})" if lines else ""
    count = f"{len(first.cells)} cell{'s' if len(first.cells) != 1 else ''}"
    raise DataError(
        f"line {first.line} of '{name}' has {count}, but the header has {len(header)}: "
        f"{quote_list(header)}{others}; {_remedy(records, first, header, delimiter)}."
    )


def _check_no_header(records: Sequence[_Record], header: Sequence[str], name: str) -> None:
    """Refuse rows that are the header again, as in files that were put one behind another."""
    lines = [
        str(record.line)
        for record in records
        if [cell.strip().removeprefix("\ufeff") for cell in record.cells] == header
    ]
    if lines and len(header) > 1:
        shown = ", ".join(lines[:_QUOTED_LINES]) + (", …" if len(lines) > _QUOTED_LINES else "")
        raise DataError(
            f"line {shown} of '{name}' repeats the header, as in files that were put one behind another; "
            "remove it."
        )


def _swallowed_rows(records: Sequence[_Record], width: int, name: str, delimiter: str) -> Iterator[Finding]:
    """Yield a finding on cells with lines that look like rows, as a stray quotation mark makes them."""
    for record in records:
        lines = max((cell.split("\n") for cell in record.cells), key=len)
        if (
            width > 1
            and len(lines) > _QUOTED_LINES
            and all(line.count(delimiter) == width - 1 for line in lines[1:-1])
        ):
            yield Finding(
                "swallowed_rows",
                f"line {record.line} of '{name}' has a cell of {len(lines)} lines that look like rows; if "
                "they are, a quotation mark is missing or too many there.",
            )


def _remedy(records: Sequence[_Record], first: _Record, header: Sequence[str], delimiter: str) -> str:
    if len(first.cells) < len(header):
        return "add the missing cells, or remove the row"
    quoting = (
        f"put cells that contain {'a comma' if delimiter == ',' else 'the delimiter'} in quotation marks"
    )
    if {len(record.cells) for record in records} == {len(first.cells)}:
        return f"name every column in the header, or {quoting}"
    return quoting


def _plural(delimiter: str) -> str:
    return _NAMES.get(delimiter, f"'{delimiter}'")
