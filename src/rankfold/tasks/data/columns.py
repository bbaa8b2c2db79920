"""Columns of a table: the text, the second text, the label and the group, found by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rankfold.errors import DataError
from rankfold.tasks.data.table import Row, Rows
from rankfold.tasks.data.texts import find_name, find_texts, text_names

_LABELS = ("label", "labels", "class", "category", "score", "target")

INSTRUCTION_COLUMNS = ("instruction", "output")
CHOICE_COLUMNS = ("question", "choices", "answer")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns a task reads.

    Args:
        text: The first or only text, or several columns that are joined, as "subject,body"; None for
            instructions and choices, whose columns have fixed names.
        pair: The second text of a pair, or several columns.
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
            roles = {
                "text": text_names(self.text, row),
                "second text": text_names(self.pair, row),
                "label": (self.label,),
            }
            names = tuple(name for columns in roles.values() for name in columns)
            text = ", ".join(f"{role} from {_join(columns)}" for role, columns in roles.items() if columns)
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
    _check_present(present, overrides, (overrides.label, overrides.group))
    if overrides == Columns(group=overrides.group) and (
        has_columns(rows[0], INSTRUCTION_COLUMNS) or has_columns(rows[0], CHOICE_COLUMNS)
    ):
        _check_group(overrides.group, (*INSTRUCTION_COLUMNS, *CHOICE_COLUMNS))
        return overrides
    label = overrides.label or find_name(_LABELS, present)
    if label is None:
        raise DataError(
            f"there is no label column; name it with --label-column or, for a model that writes text, call "
            f"the columns {_quote_list(INSTRUCTION_COLUMNS)}, or {_quote_list(CHOICE_COLUMNS)}; "
            f"the data has {_quote_list(present)}."
        )
    texts = (*text_names(overrides.text, present), *text_names(overrides.pair, present))
    _check_group(overrides.group, (*texts, label))
    if overrides.text is not None:
        return _check_distinct(replace(overrides, label=label), present)
    text, pair = find_texts(rows, skip=(label, overrides.group))
    columns = replace(overrides, text=text, pair=overrides.pair or pair, label=label)
    return _check_distinct(columns, present)


def find_text_columns(rows: Rows, overrides: Columns) -> Columns:
    """Return the columns of the texts of rows without labels, those that are not named by their usual names.

    Args:
        rows: At least one row.
        overrides: Columns the user has named, or that were read in training. The label and the group, if they
            are there, are no texts.

    Raises:
        DataError: If a named column does not exist, or no column is the text.
    """
    _check_present(tuple(rows[0]), overrides)
    if overrides.text is not None:
        return overrides
    labels = (overrides.label, *_LABELS) if overrides.label is None else (overrides.label,)
    text, pair = find_texts(rows, skip=(*labels, overrides.group))
    return replace(overrides, text=text, pair=overrides.pair or pair)


def _check_present(present: Sequence[str], columns: Columns, others: Sequence[str | None] = ()) -> None:
    texts = (*text_names(columns.text, present), *text_names(columns.pair, present))
    for name in (*texts, *others):
        if name is not None and name not in present:
            raise DataError(
                f"there is no column '{name}'; name one that the data has: {_quote_list(present)}."
            )


def _check_distinct(columns: Columns, present: Sequence[str]) -> Columns:
    read = {
        "text": text_names(columns.text, present),
        "second text": text_names(columns.pair, present),
        "label": () if columns.label is None else (columns.label,),
    }
    for name in dict.fromkeys(name for names in read.values() for name in names):
        roles = [role for role, names in read.items() for column in names if column == name]
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


def check_columns(splits: Mapping[str, Rows], columns: Columns) -> None:
    """Check that every split has the columns that were found in the first.

    Args:
        splits: At least one row by split name.
        columns: What `find_columns` returned for the first split.

    Raises:
        DataError: If a split lacks a column.
    """
    for split, rows in splits.items():
        texts = (*text_names(columns.text, rows[0]), *text_names(columns.pair, rows[0]))
        for name in (*texts, columns.label, columns.group):
            if name is not None and name not in rows[0]:
                raise DataError(
                    f"the split '{split}' has no column '{name}', but {_quote_list(rows[0])}; "
                    "give every split the same columns."
                )


def has_columns(row: Row, names: Sequence[str]) -> bool:
    """Return whether a row has all of some columns."""
    return all(name in row for name in names)


def _join(names: Sequence[str]) -> str:
    """Return the names of columns whose texts are joined: "'subject' and 'body' (joined by a line break)"."""
    quoted = " and ".join(f"'{name}'" for name in names)
    return f"{quoted} (joined by a line break)" if len(names) > 1 else quoted


def _quote_list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(f"'{name}'" for name in names)
