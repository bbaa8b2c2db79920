"""Columns of a table: the text, the second text, the label and the group, found by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rankfold.errors import DataError
from rankfold.tasks.data.read import Row, Rows

_LABELS = ("label", "labels", "class", "category", "score", "target")
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
_SINGLES = ("sentence", "text", "content", "question")
_NOT_TEXT = ("id", "idx")

INSTRUCTION_COLUMNS = ("instruction", "output")
CHOICE_COLUMNS = ("question", "choices", "answer")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns a task reads.

    Args:
        text: The first or only text; None for instructions and choices, whose columns have fixed names.
        pair: The second text of a pair.
        label: What is to be predicted; None for instructions and choices.
        group: Whose rows they are: a person or document, which no two splits may share; None if nobody says.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    group: str | None = None

    def by_role(self) -> dict[str, str]:
        """Return the names of the columns that are known, by their role here."""
        roles = {"text": self.text, "pair": self.pair, "label": self.label, "group": self.group}
        return {role: name for role, name in roles.items() if name is not None}

    def summary(self, row: Row) -> str:
        """Return in words the columns that are read and those that are not.

        An example is "text from 'text', label from 'class'; not read: 'id'".
        """
        if self.label is None:
            names = INSTRUCTION_COLUMNS if has_columns(row, INSTRUCTION_COLUMNS) else CHOICE_COLUMNS
            text = _quote_list(names)
        else:
            roles = {"text": self.text, "second text": self.pair, "label": self.label}
            names = tuple(name for name in roles.values() if name is not None)
            text = ", ".join(f"{role} from '{name}'" for role, name in roles.items() if name is not None)
        unread = [name for name in row if name not in (*names, self.group)]
        # A kind with columns of its own reads others than those named here.
        return f"{text}; not read: {_quote_list(unread)}" if unread and has_columns(row, names) else text


def find_columns(rows: Rows, overrides: Columns) -> Columns:
    """Return the columns to read: those in `overrides`, the rest by their usual names.

    Rows with `instruction` and `output`, or with `question`, `choices` and `answer`, need none.

    Args:
        rows: At least one row.
        overrides: Columns the user or a named task has named; they win.

    Raises:
        DataError: If a named column does not exist, none of the usual names does, or a column would be two
            things at once.
    """
    present = tuple(rows[0])
    for name in (overrides.text, overrides.pair, overrides.label, overrides.group):
        if name is not None and name not in present:
            raise DataError(
                f"there is no column '{name}'; name one that the data has: {_quote_list(present)}."
            )
    if overrides == Columns(group=overrides.group) and (
        has_columns(rows[0], INSTRUCTION_COLUMNS) or has_columns(rows[0], CHOICE_COLUMNS)
    ):
        _check_group(overrides.group, (*INSTRUCTION_COLUMNS, *CHOICE_COLUMNS))
        return overrides
    label = overrides.label or next((name for name in _LABELS if name in present), None)
    if label is None:
        raise DataError(
            f"there is no label column; name it with --label-column or, for a model that writes text, call "
            f"the columns {_quote_list(INSTRUCTION_COLUMNS)}, or {_quote_list(CHOICE_COLUMNS)}; "
            f"the data has {_quote_list(present)}."
        )
    _check_group(overrides.group, (overrides.text, overrides.pair, label))
    if overrides.text is not None:
        return _check_distinct(replace(overrides, label=label))
    text, pair = _texts(rows[0], skip=(label, overrides.group))
    return _check_distinct(replace(overrides, text=text, pair=overrides.pair or pair, label=label))


def find_text_columns(rows: Rows, overrides: Columns) -> Columns:
    """Return the columns of the texts of rows without labels, those that are not named by their usual names.

    Args:
        rows: At least one row.
        overrides: Columns the user has named, or that were read in training. The label and the group, if they
            are there, are no texts.

    Raises:
        DataError: If a named column does not exist, or no column is the text.
    """
    present = tuple(rows[0])
    for name in (overrides.text, overrides.pair):
        if name is not None and name not in present:
            raise DataError(
                f"there is no column '{name}'; name one that the data has: {_quote_list(present)}."
            )
    if overrides.text is not None:
        return overrides
    labels = (overrides.label, *_LABELS) if overrides.label is None else (overrides.label,)
    text, pair = _texts(rows[0], skip=(*labels, overrides.group))
    return replace(overrides, text=text, pair=overrides.pair or pair)


def _check_distinct(columns: Columns) -> Columns:
    read = {"text": columns.text, "second text": columns.pair, "label": columns.label}
    for name in filter(None, read.values()):
        roles = [role for role, column in read.items() if column == name]
        if len(roles) > 1:
            raise DataError(
                f"the column '{name}' would be {' and '.join(roles)} at once; "
                "name another with --text-column, --pair-column or --label-column."
            )
    return columns


def _check_group(group: str | None, read: Sequence[str | None]) -> None:
    if group is not None and group in read:
        raise DataError(
            f"the column '{group}' is read as text or label and cannot be the group; "
            "name with --group-column the one that says whose the row is."
        )


def _texts(row: Row, *, skip: Sequence[str | None]) -> tuple[str, str | None]:
    """Return the columns of the first and the second text, of those that are not to be skipped."""
    free = {name: value for name, value in row.items() if name not in (*_NOT_TEXT, *skip)}
    for pair in _PAIRS:
        if has_columns(free, pair):
            return pair
    for name in _SINGLES:
        if name in free:
            return name, None
    strings = [name for name, value in free.items() if isinstance(value, str)]
    if len(strings) == 1:
        return strings[0], None
    raise DataError(
        f"cannot tell which column is the text; name it with --text-column, the data has {_quote_list(row)}."
    )


def check_columns(splits: Mapping[str, Rows], columns: Columns) -> None:
    """Check that every split has the columns that were found in the first.

    Args:
        splits: At least one row by split name.
        columns: What `find_columns` returned for the first split.

    Raises:
        DataError: If a split lacks a column.
    """
    for split, rows in splits.items():
        for name in (columns.text, columns.pair, columns.label, columns.group):
            if name is not None and name not in rows[0]:
                raise DataError(
                    f"the split '{split}' has no column '{name}', but {_quote_list(rows[0])}; "
                    "give every split the same columns."
                )


def has_columns(row: Row, names: Sequence[str]) -> bool:
    """Return whether a row has all of some columns."""
    return all(name in row for name in names)


def _quote_list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(f"'{name}'" for name in names)
