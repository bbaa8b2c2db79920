"""Text columns: found by their names or by the words in them, and several of them joined into one text."""

import re
from collections.abc import Iterable, Sequence

from rankfold.errors import DataError
from rankfold.tasks.data.table import Row, Rows, quote_list

JOINT = "\n"
"""Stands between the texts of several columns, in the order of their names; empty texts are left out."""

DROP_REMEDY = "correct the row, or leave out all such rows with --drop-missing"
"""The end of an error about a missing value."""

_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
_SINGLES = ("sentence", "text", "content", "question")
_HEADINGS = ("subject", "title", "headline", "heading", "summary")
_BODIES = (
    *("body", "message", "description", "comment", "review", "article", "abstract", "post", "tweet", "email"),
    *("utterance", "document", "sms", "transcript"),
)
_NOT_TEXT = re.compile(
    r"(.*[_\- ])?(id|idx|uuid|guid|index|key)|column \d+|__index_level_\d+__", re.IGNORECASE
)
_NUMBER_LIKE = re.compile(r"[\d\s.,:;/+\-%€$£TZ]*")
_SAMPLE_ROWS = 200
_LEAST_WORDS = 2.5
"""Fewer words a text than this, on average, are names or categories."""


def can_be_label(name: str) -> bool:
    """Return whether a column may be of labels by its name, which is neither that of a text nor of an id."""
    return name.lower() not in {*_SINGLES, *_HEADINGS, *_BODIES} and not _NOT_TEXT.fullmatch(name)


def text_names(columns: str | None, present: Iterable[str]) -> tuple[str, ...]:
    """Return the names of columns that are joined into one text: one name, or several as "subject,body".

    Args:
        columns: As the user names them; None for none.
        present: The columns of the data, one of which may have a comma in its name.
    """
    if columns is None:
        return ()
    if columns in present:
        return (columns,)
    return tuple(name.strip() for name in columns.split(",")) if "," in columns else (columns,)


def text_of(row: Row, columns: str) -> str:
    """Return the text in a column, or the texts in several joined by a line break, without the empty ones.

    Args:
        row: The row.
        columns: The name of a column, or several as "subject,body".

    Raises:
        DataError: If a column is missing or holds no text; of several, some may be empty or None.
    """
    names = text_names(columns, row)
    if len(names) == 1:
        return _text(row.get(names[0]), names[0])
    texts = [_text(value, name) for name in names if (value := row.get(name)) is not None]
    if not texts:
        raise DataError(f"the columns {quote_list(names)} hold no text; mend or remove the row.")
    return JOINT.join(text for text in texts if text.strip())


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"the column '{name}' holds '{value}' where a text is needed; mend or remove the row."
        )
    return value


def find_name(names: Sequence[str], present: Iterable[str]) -> str | None:
    """Return the first of some usual names that a column has, however it is capitalised; None if none has."""
    columns = list(present)
    by_letters = {column.lower(): column for column in reversed(columns)}
    return next((name if name in columns else by_letters[name] for name in names if name in by_letters), None)


def find_texts(rows: Rows, skip: Iterable[str | None]) -> tuple[str, str | None]:
    """Return the column of the text, or several as "subject,body", and the column of a second text.

    In this order: two columns with the usual names of a pair; one with a usual name of a text; a heading and
    a body, joined; the only column with words.

    Args:
        rows: At least one row.
        skip: Columns that are read as something else.

    Raises:
        DataError: If several columns could be the text, or none.
    """
    passed_over = set(skip)
    free = [name for name in rows[0] if name not in passed_over and not _NOT_TEXT.fullmatch(name)]
    for first, second in _PAIRS:
        if (one := find_name((first,), free)) and (other := find_name((second,), free)):
            return one, other
    if single := find_name(_SINGLES, free):
        return single, None
    sample = rows[:_SAMPLE_ROWS]
    words = {name: _mean_words([row.get(name) for row in sample]) for name in free}
    texts = [name for name in free if words[name] is not None]
    heading, body = find_name(_HEADINGS, texts), find_name(_BODIES, texts)
    if heading and body:
        return f"{heading},{body}", None
    prose = [name for name in texts if (words[name] or 0) >= _LEAST_WORDS]
    for candidates in ([body] if body else [], prose, texts):
        if len(candidates) == 1:
            return candidates[0], None
    several = f", or several as --text-column {','.join(prose)}" if len(prose) > 1 else ""
    raise DataError(
        f"cannot tell which column is the text; name it with --text-column{several}; the data has "
        f"{quote_list(rows[0])}."
    )


def _mean_words(values: Sequence[object]) -> float | None:
    """Return the mean number of words of texts; None if a value is no text, or all are numbers or dates."""
    texts = [value for value in values if value is not None and value != ""]
    if not texts or not all(isinstance(text, str) for text in texts):
        return None
    words = [text.split() for text in map(str, texts) if not _NUMBER_LIKE.fullmatch(text)]
    return sum(map(len, words)) / len(words) if words else None
