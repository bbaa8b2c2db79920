"""Columns of a table: the text, the second text, the label and the group, found by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from rankfold.errors import DataError
from rankfold.tasks.data.numbers import is_missing, is_number_text
from rankfold.tasks.data.picture_columns import picture_columns
from rankfold.tasks.data.questions import QuestionColumns, find_question_columns, split_names
from rankfold.tasks.data.table import Row, Rows, quote_list
from rankfold.tasks.data.texts import can_be_label, find_name, find_texts, text_names

LABEL_NAMES = ("label", "labels", "class", "category", "score", "target")
"""The usual names of columns of labels."""

_SAMPLE_ROWS, _MOST_VALUES, _LONGEST_LABEL, _LISTED_COLUMNS = 1000, 20, 40, 3

INSTRUCTION_COLUMNS = ("instruction", "output")
CHOICE_COLUMNS = ("question", "choices", "answer")

_PREFERENCES = (
    ("chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("prompt", "completions", "labels"),
)
"""Columns of preference data, as TRL has them for DPO, KTO and process rewards."""

_LAYOUTS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("messages",): ("system", "tools"),
    ("conversations",): ("system", "tools"),
    ("conversation",): ("system", "tools"),
    INSTRUCTION_COLUMNS: ("input", "system", "history"),
    ("prompt", "completion"): ("system", "history", "tools"),
    CHOICE_COLUMNS: ("context",),
}
"""Columns of conversations, instructions and questions, with those that may stand beside them."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns a task reads.

    Args:
        text: The first or only text, or several columns that are joined, as "subject,body"; None for
            instructions and choices, whose columns have fixed names.
        pair: The second text of a pair, or several columns.
        label: What is to be predicted; None for instructions and choices.
        group: Whose rows they are: a person or document, which no two splits may share; None if nobody says.
        choices: The choices of a question: a column of lists, or several columns with commas between them.
        picture: A picture, or several in a list; None for kinds that read texts alone.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    group: str | None = None
    choices: str | None = None
    picture: str | None = None

    @property
    def question(self) -> QuestionColumns:
        """The columns of a question with choices, those that are None by their usual names."""
        fixed = QuestionColumns()
        return QuestionColumns(
            self.text or fixed.text, self.label or fixed.label, self.choices or fixed.choices
        )

    def by_role(self) -> dict[str, str]:
        """Return the names of the columns that are known, by their role here."""
        roles = {
            "text": self.text,
            "pair": self.pair,
            "label": self.label,
            "group": self.group,
            "picture": self.picture,
        }
        return {role: name for role, name in roles.items() if name is not None}

    def summary(self, row: Row) -> str:
        """Return in words the columns that are read and those that are not.

        An example is "text from 'text', label from 'class'; not read: 'id'".
        """
        roles = self._roles(row)
        if self.label is None:
            text = quote_list(roles[""])
        else:
            text = ", ".join(f"{role} from {_join(role, names)}" for role, names in roles.items() if names)
        unread = self.unread_names(row)
        return f"{text}; not read: {quote_list(unread)}" if unread else text

    def unread_names(self, row: Row) -> tuple[str, ...]:
        """Return the columns of a row that are not read; none for a kind with columns of its own."""
        names = [name for columns in self._roles(row).values() for name in columns]
        is_known = has_columns(row, names)
        return tuple(name for name in row if is_known and name not in (*names, self.group))

    def _roles(self, row: Row) -> dict[str, tuple[str, ...]]:
        """Return the columns that are read by their role; those of conversations and such have none."""
        pictures = () if self.picture is None else (self.picture,)
        if self.label is None:
            return {"": (*pictures, *(layout_of(row) or text_names(self.text, row)))}
        texts = text_names(self.text, row)
        if self.choices is not None:
            choices = tuple(split_names(row, self.choices))
            context = ("context",) if "context" in row else ()
            return {"context": context, "question": texts, "choices": choices, "answer": (self.label,)}
        pairs = text_names(self.pair, row)
        return {"picture": pictures, "text": texts, "second text": pairs, "label": (self.label,)}


def find_columns(rows: Rows, overrides: Columns) -> Columns:
    """Return the columns to read: those in `overrides`, the rest by their usual names.

    Conversations (`messages`), instructions (`instruction` and `output`) and questions (`question`, `choices`
    and `answer`) need none.

    Args:
        rows: At least one row.
        overrides: Columns the user or a named task has named; they win.

    Raises:
        DataError: If a named column does not exist, none of the usual names does, or a column would be two
            things at once.
    """
    present = tuple(rows[0])
    _check_present(present, overrides, (overrides.label, overrides.group))
    _check_pictures(rows, overrides)
    if overrides == Columns(group=overrides.group) and (layout := layout_of(rows[0])):
        _check_group(overrides.group, layout)
        return overrides
    if overrides.label is None and _is_conversation(rows[0].get(overrides.text or "")):
        return overrides
    named = QuestionColumns(overrides.text, overrides.label, overrides.choices)
    if overrides.pair is None and (question := find_question_columns(rows[0], named)):
        return replace(overrides, **question._asdict())
    label = overrides.label or find_name(LABEL_NAMES, present)
    if label is None:
        likely = _likely_labels(rows)
        example = f", such as {' or '.join(likely)}" if likely else ""
        raise DataError(
            f"there is no label column; name it with --label-column{example} or, for a model that writes "
            f"text, call the columns {quote_list(INSTRUCTION_COLUMNS)}, or "
            f"{quote_list(CHOICE_COLUMNS)}, or name prompt and answer with --kind instruction "
            "--text-column and --label-column; "
            f"the data has {quote_list(present)}."
        )
    texts = (*text_names(overrides.text, present), *text_names(overrides.pair, present))
    _check_group(overrides.group, (*texts, label))
    if overrides.text is not None:
        return _check_distinct(replace(overrides, label=label), present)
    text, pair = find_texts(rows, skip=(label, overrides.group))
    columns = replace(overrides, text=text, pair=overrides.pair or pair, label=label)
    return _check_distinct(columns, present)


def _likely_labels(rows: Rows) -> list[str]:
    """Return up to three columns that may be of labels: those of few values, the fewest first, and numbers.

    The few values come back in other rows. Columns that are called as texts are, and those of ids, are none.
    """
    sample = rows[:_SAMPLE_ROWS]
    counts: dict[str, int] = {}
    numbers: list[str] = []
    for name in sample[0]:
        values = {str(value) for row in sample if not is_missing(value := row.get(name))}
        is_short = all(len(value) <= _LONGEST_LABEL for value in values)
        if not is_short or len(values) < 2 or not can_be_label(name):  # noqa: PLR2004 (classes differ)
            continue
        if len(values) <= _MOST_VALUES and 2 * len(values) <= len(sample):
            counts[name] = len(values)
        elif all(map(is_number_text, values)):
            numbers.append(name)
    return [*sorted(counts, key=counts.__getitem__), *numbers][:_LISTED_COLUMNS]


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
    labels = (overrides.label, *LABEL_NAMES) if overrides.label is None else (overrides.label,)
    text, pair = find_texts(rows, skip=(*labels, overrides.group))
    return replace(overrides, text=text, pair=overrides.pair or pair)


def check_no_preferences(row: Row, overrides: Columns) -> None:
    """Refuse preference data, whose worse answers would be learned like the better ones.

    Args:
        row: The first row.
        overrides: Columns the user has named; with a text or a label, these are learned.

    Raises:
        DataError: If the row has the columns of a preference.
    """
    names = next((names for names in _PREFERENCES if has_columns(row, names)), None)
    if names is not None and overrides.text is None and overrides.label is None:
        raise DataError(
            f"the rows are preference data ({quote_list(names)}), which take another loss; train on them "
            "with TRL and rankfold's config, as examples/with_dpo_trainer.py does, or name the columns "
            "to learn with --text-column and --label-column."
        )


def _check_present(present: Sequence[str], columns: Columns, others: Sequence[str | None] = ()) -> None:
    texts = (*text_names(columns.text, present), *text_names(columns.pair, present))
    for name in (*texts, *others):
        if name is not None and name not in present:
            raise DataError(
                f"there is no column '{name}'; name one that the data has: {quote_list(present)}."
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


def _check_pictures(rows: Rows, overrides: Columns) -> None:
    """Refuse rows with pictures, which would not be seen, unless the user has named the text."""
    pictures = [name for name in picture_columns(rows) if name not in (overrides.label, overrides.group)]
    if pictures and overrides.text is None:
        raise DataError(
            f"the column {quote_list(pictures)} holds pictures, which a model of texts cannot see; name the "
            "text with --text-column to learn from it alone, or name a kind of task for pictures with --kind."
        )


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
        choices = () if columns.choices is None else split_names(rows[0], columns.choices)
        for name in (*texts, columns.label, columns.group, columns.picture, *choices):
            if name is not None and name not in rows[0]:
                raise DataError(
                    f"the split '{split}' has no column '{name}', but {quote_list(rows[0])}; "
                    "give every split the same columns."
                )


def layout_of(row: Row) -> tuple[str, ...]:
    """Return the columns of a conversation, an instruction or a question that a row has; empty if of none."""
    for names, others in _LAYOUTS.items():
        first: str = next(iter(names), "")
        if has_columns(row, names) and (len(names) > 1 or _is_conversation(row[first], is_strict=False)):
            return (*names, *(name for name in others if name in row))
    return ()


def is_question(row: Row, columns: Columns) -> bool:
    """Return whether a row is a question whose choices are compared, and nothing else."""
    return columns.label is None and layout_of(row)[: len(CHOICE_COLUMNS)] == CHOICE_COLUMNS


def _is_conversation(value: object, *, is_strict: bool = True) -> bool:
    """Return whether a value is a list of messages, perhaps written as JSON; unless strict, any list."""
    if isinstance(value, str):
        return value.lstrip().startswith("[{")
    items = cast("list[object]", value) if isinstance(value, list) else None
    return items is not None and (not is_strict or all(isinstance(item, Mapping) for item in items))


def has_columns(row: Row, names: Sequence[str]) -> bool:
    """Return whether a row has all of some columns."""
    return all(name in row for name in names)


def _join(role: str, names: Sequence[str]) -> str:
    """Return the names of columns, and how their texts are joined if they are one text."""
    quoted = " and ".join(f"'{name}'" for name in names)
    is_joined = len(names) > 1 and role != "choices"
    return f"{quoted} (joined by a line break)" if is_joined else quoted
