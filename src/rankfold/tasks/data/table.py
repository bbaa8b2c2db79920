"""Tables: the rows of a split, where each of them is in the files, and findings on them."""

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Self

logger = logging.getLogger("rankfold.tasks")

Row = Mapping[str, object]
Rows = Sequence[Row]

_QUOTED_NAMES = 10
_QUOTED_CHARACTERS = 60
_NAMED_ROWS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark on data or examples that the user may want to act on; it is no error.

    Args:
        name: An identifier for programs, the same for all remarks of this sort, such as "duplicates".
        message: One sentence with the numbers, the first rows or values, and the remedy if there is one.
    """

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of one file.

    Args:
        rows: One mapping a row.
        lines: The line on which each row begins, from 1; None if the format has no lines.
        class_names: For columns of class ids, the names the ids stand for.
        findings: Remarks on the file.
        size: Its bytes, decompressed.
        is_typed: Whether the format tells numbers from texts.
    """

    rows: Rows
    lines: Sequence[int] | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    findings: Sequence[Finding] = ()
    size: int = 0
    is_typed: bool = True


@dataclass(frozen=True, slots=True)
class Origin:
    """The file of consecutive rows of a table.

    Args:
        file: Its name in messages.
        first: The index of its first row in the table.
        lines: The line on which each row begins, from 1; None if the format has no lines.
    """

    file: str
    first: int
    lines: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one split.

    Args:
        rows: One mapping a row, with the same columns in each.
        class_names: For columns of class ids, the names the ids stand for.
        indices: The index of each row in the source, from 0; None if these are all its rows, in order.
        origins: The files of the source, in the order of its rows; empty if it has none.
        findings: Remarks on these files.
        is_typed: Whether the format tells numbers from texts.
    """

    rows: Rows
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    indices: Sequence[int] | None = None
    origins: Sequence[Origin] = ()
    findings: tuple[Finding, ...] = ()
    is_typed: bool = True

    def enumerate_rows(self) -> Iterator[tuple[int, Row]]:
        """Yield each row with its index in the source."""
        return zip(range(len(self.rows)) if self.indices is None else self.indices, self.rows, strict=True)

    def part(self, indices: Iterable[int]) -> Self:
        """Return some of all the rows of a source."""
        positions = tuple(indices)
        return replace(self, rows=[self.rows[index] for index in positions], indices=positions)

    def origin_of(self, index: int) -> Origin | None:
        """Return the file of a row; None where there are no files.

        Args:
            index: Its index in the source, from 0.
        """
        place = bisect_right(self.origins, index, key=lambda item: item.first) - 1
        return self.origins[place] if self.origins else None

    def locate(self, index: int, split: str | None = None) -> str:
        """Return the place of a row in words: "line 3 of 'train.csv'", or "row 2" where there are no lines.

        Args:
            index: Its index in the source, from 0.
            split: The split, which is named where there is no file to name.
        """
        return self._locate([index], split)

    def locate_rows(self, positions: Sequence[int], split: str | None = None) -> str:
        """Return the places of some of these rows in words, as `locate` does; of many the first few.

        Args:
            positions: Their places in `rows`, from 0, in order.
            split: The split, which is named where there is no file to name.
        """
        indices = self.indices
        return self._locate(
            [position if indices is None else indices[position] for position in positions], split
        )

    def quote(self, column: str, text: str) -> str:
        """Return a text of a column in quotation marks, with the rows that have it: "'12 EUR' (line 3 …)"."""
        positions = [
            position
            for position, row in enumerate(self.rows)
            if isinstance(value := row.get(column), str) and value.strip() == text
        ]
        shown = text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}…"
        return f"'{shown}' ({self.locate_rows(positions)})" if positions else f"'{shown}'"

    def _locate(self, indices: Sequence[int], split: str | None) -> str:
        if not self.origins:
            numbers = _plural("row", [index + 1 for index in indices])
            return numbers if split is None else f"{numbers} of the split '{split}'"
        origins = [bisect_right(self.origins, index, key=lambda item: item.first) - 1 for index in indices]
        if len(set(origins)) > 1:
            rest = len(indices) - _NAMED_ROWS
            places = "; ".join(self._locate([index], split) for index in indices[:_NAMED_ROWS])
            return places + (f" and {rest} more" if rest > 0 else "")
        origin = self.origins[origins[0]]
        places = [index - origin.first for index in indices]
        if origin.lines is None:
            return f"{_plural('row', [place + 1 for place in places])} of '{origin.file}'"
        return f"{_plural('line', [origin.lines[place] for place in places])} of '{origin.file}'"


def _plural(noun: str, numbers: Sequence[int]) -> str:
    """Return a noun with numbers: "row 3", or "rows 3, 5, 8, 9, 12 and 40 more"."""
    shown = ", ".join(map(str, numbers[:_NAMED_ROWS]))
    rest = len(numbers) - _NAMED_ROWS
    return f"{noun}{'s' if len(numbers) > 1 else ''} {shown}" + (f" and {rest} more" if rest > 0 else "")


def rows_to_hash(table: Table) -> Rows:
    """Return the rows as they are hashed: the same whether their format tells numbers from texts or not.

    In columns of texts that are all written as JSON writes a number or a truth value, these are meant.
    """
    if table.is_typed:
        return table.rows
    readers = {name: _reader([str(row[name]) for row in table.rows]) for name in table.rows[0]}
    return [{name: readers[name](str(value)) for name, value in row.items()} for row in table.rows]


def _reader(texts: Sequence[str]) -> Callable[[str], object]:
    """Return the function that gives back the values of which all of these are the texts."""
    for read, write in ((int, str), (float, repr), (_TRUTH.__getitem__, str)):
        with suppress(ValueError, KeyError):
            if all(write(read(text)) == text for text in texts):
                return read
    return str


_TRUTH = {"True": True, "False": False}


def quote_list(names: Iterable[object], separator: str = ", ") -> str:
    """Return the first few values in quotation marks, with commas or other text between them."""
    values = list(names)
    quoted = separator.join(f"'{value}'" for value in values[:_QUOTED_NAMES])
    return f"{quoted}, …" if len(values) > _QUOTED_NAMES else quoted


def log_findings(findings: Iterable[Finding]) -> None:
    """Log each message once, at level INFO."""
    for message in dict.fromkeys(finding.message for finding in findings):
        logger.info("%s", message)
