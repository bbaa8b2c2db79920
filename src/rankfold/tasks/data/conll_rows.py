"""Rows of a CoNLL file: a token and its tag on each line, and a blank line behind each sentence."""

from collections.abc import Iterator, Sequence

from rankfold.errors import DataError
from rankfold.tasks.data.decode import check_values
from rankfold.tasks.data.table import FileRows, Row

_DOCUMENT = "-DOCSTART-"
_Line = tuple[int, list[str]]


def read_conll(text: str, name: str) -> FileRows:
    """Return the sentences of a CoNLL file as rows with lists: `tokens`, and `tags` if there are any.

    The values of a line are separated by tabs, if the file has any, else by spaces. The first is the token,
    the last the tag; those between are columns of their own ("column 2"). Lines of documents (`-DOCSTART-`)
    and comments (`# …`) are left out.

    Args:
        text: The content.
        name: The file in messages.

    Raises:
        DataError: If a line has more or fewer values than the first, with its number.
    """
    check_values(f"'{name}'", text, "\n")
    sentences = list(_sentences(text, "\t" if "\t" in text else None))
    if not sentences:
        return FileRows([])
    width = len(sentences[0][0][1])
    for sentence in sentences:
        for number, values in sentence:
            if len(values) != width:
                raise DataError(
                    f"line {number} of '{name}' has {_values(len(values))}, but the first line has {width}; "
                    "give each token one line with its tag, and put a blank line behind each sentence."
                )
    names = ["tokens", *(f"column {place}" for place in range(2, width)), "tags"][:width]
    rows: list[Row] = [
        {column: [values[place] for _, values in sentence] for place, column in enumerate(names)}
        for sentence in sentences
    ]
    return FileRows(rows, [sentence[0][0] for sentence in sentences])


def _sentences(text: str, separator: str | None) -> Iterator[Sequence[_Line]]:
    """Yield the lines of each sentence by their number, cut into values."""
    sentence: list[_Line] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith(_DOCUMENT):
            line = ""
        values = [value.strip() for value in line.strip("\r ").split(separator)] if line.strip() else []
        is_comment = line.startswith("# ") and not (sentence and len(values) == len(sentence[0][1]))
        if values and not is_comment:
            sentence.append((number, values))
        elif sentence and not is_comment:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _values(count: int) -> str:
    return "one value" if count == 1 else f"{count} values"
