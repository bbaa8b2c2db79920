"""Tables: the rows of a split, and where each of them is in the files."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from rankfold.tasks.data.findings import Finding

Row = Mapping[str, object]
Rows = Sequence[Row]

_QUOTED_NAMES = 10


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of one file.

    Args:
        rows: One mapping a row.
        lines: The line on which each row begins, from 1; None if the format has no lines.
        class_names: For columns of class ids, the names the ids stand for.
        findings: Remarks on the file.
        size: Its bytes, decompressed.
    """

    rows: Rows
    lines: Sequence[int] | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    findings: Sequence[Finding] = ()
    size: int = 0


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
    """

    rows: Rows
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    indices: Sequence[int] | None = None
    origins: Sequence[Origin] = ()
    findings: tuple[Finding, ...] = ()

    def enumerate_rows(self) -> Iterator[tuple[int, Row]]:
        """Yield each row with its index in the source."""
        return zip(range(len(self.rows)) if self.indices is None else self.indices, self.rows, strict=True)

    def part(self, indices: Iterable[int]) -> Self:
        """Return some of all the rows of a source."""
        positions = tuple(indices)
        return replace(self, rows=[self.rows[index] for index in positions], indices=positions)

    def locate(self, index: int, split: str | None = None) -> str:
        """Return the place of a row in words: "line 3 of 'train.csv'", or "row 2" where there are no lines.

        Args:
            index: Its index in the source, from 0.
            split: The split, which is named where there is no file to name.
        """
        if not self.origins:
            return f"row {index + 1}" if split is None else f"row {index + 1} of the split '{split}'"
        origin = self.origins[bisect_right(self.origins, index, key=lambda item: item.first) - 1]
        place = index - origin.first
        number = f"row {place + 1}" if origin.lines is None else f"line {origin.lines[place]}"
        return f"{number} of '{origin.file}'"


def quote_list(names: Iterable[object]) -> str:
    """Return the first few values in quotation marks, with commas between them."""
    values = list(names)
    quoted = ", ".join(f"'{value}'" for value in values[:_QUOTED_NAMES])
    return f"{quoted}, …" if len(values) > _QUOTED_NAMES else quoted
