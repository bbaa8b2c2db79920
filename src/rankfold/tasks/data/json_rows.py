"""Rows of a JSON file: one object a line, a list of objects, or an object that holds one."""

import json
import re
from collections.abc import Mapping
from typing import cast

from rankfold.errors import DataError
from rankfold.files import unique_pairs
from rankfold.tasks.data.decode import MAX_VALUES, check_values, reason_of
from rankfold.tasks.data.layout import split_of
from rankfold.tasks.data.table import FileRows, Finding, Row, quote_list

MAX_DEPTH = 64
"""The most lists and objects within each other."""

MAX_ROW_VALUES = 1_000_000
"""The most values of one row of JSONL; each costs a reader far more memory than the file has bytes."""

_SHOWN_CHARACTERS = 30
_LIST = re.compile(r'"(\w+)"\s*:\s*\[')
_BEGINNING = 4096
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_REMEDY = "write one object a line, or one list of objects"


def read_json(text: str, name: str, split: str = "train", *, has_lines: bool) -> FileRows:
    """Return the rows of a JSON file; the content decides, not its name.

    Read are one object a line (JSONL), a list of objects, an object with one key that holds such a list (as
    in `{"data": [...]}`) or a list for each split, and an object of columns. Values stay as they are.

    Args:
        text: The content.
        name: The file in messages.
        split: The split to read, where the file has several.
        has_lines: Whether the name of the file promises one object a line.

    Raises:
        DataError: If a row is no object, or the text no JSON of bounded depth and size.
    """
    start = text.lstrip()[:1]
    if start in ("", "["):
        return _of_document(_parse(text, f"'{name}'", MAX_VALUES), name, split) if start else FileRows([])
    if start == "{" and not has_lines and not _is_first_line_whole(text):
        return _of_document(_parse(text, f"'{name}'", MAX_VALUES), name, split)
    file = _of_lines(text, name)
    return file if has_lines or len(file.rows) != 1 else _of_document(file.rows[0], name, split)


def read_json_row(text: str, place: str, remedy: str) -> Row:
    """Return the row that one line of JSON holds, by the rules for files.

    Args:
        text: The line.
        place: The line in messages.
        remedy: What to do if it is no JSON.

    Raises:
        DataError: If it is no object, repeats a key, or is deeper or larger than allowed.
    """
    return _row(_parse(text, place, MAX_ROW_VALUES, remedy), place)


def _is_first_line_whole(text: str) -> bool:
    try:
        json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return True


def _of_lines(text: str, name: str) -> FileRows:
    rows: list[Row] = []
    lines: list[int] = []
    check_values(f"'{name}'", text, "[{,\n")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"line {number} of '{name}'"
            rows.append(_row(_parse(line, place, MAX_ROW_VALUES), place))
            lines.append(number)
    return FileRows(rows, lines)


def split_names(text: str) -> tuple[str, ...]:
    """Return the splits that a JSON object has a list of rows for; none of any other text.

    Only a text that begins like such an object is read as a whole.

    Raises:
        DataError: If it is no JSON of bounded depth and size.
    """
    beginning = text[:_BEGINNING].lstrip()
    if beginning[:1] != "{" or not any(map(split_of, _LIST.findall(beginning))):
        return ()
    value = _parse(text, "the file", MAX_VALUES)
    lists = _splits(cast("dict[str, object]", value)) if isinstance(value, dict) else {}
    return tuple(lists)


def _splits(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the lists of rows of an object by split, if all of them are named after different splits."""
    lists = {name: item for name, item in fields.items() if _is_list_of_objects(item)}
    by_split = {split: item for name, item in lists.items() if (split := split_of(name)) is not None}
    return by_split if len(by_split) == len(lists) else {}


def _of_document(value: object, name: str, split: str) -> FileRows:
    """Return the rows of a list, of the one list in an object, of an object of columns, or of one object."""
    findings: list[Finding] = []
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        lists = [key for key, item in fields.items() if _is_list_of_objects(item)]
        if split in (splits := _splits(fields)):
            value = splits[split]
        elif len(lists) > 1:
            raise DataError(
                f"'{name}' has lists of rows in {quote_list(lists)}; write each to a file of its own."
            )
        elif lists and not _is_row_with_list(fields):
            findings = [Finding("key", f"the rows of '{name}' are those in '{lists[0]}'.")]
            value = fields[lists[0]]
        else:
            value = _rows_of_columns(fields) or [fields]
    items = cast("list[object]", value)
    rows = [_row(item, f"row {place} of '{name}'") for place, item in enumerate(items, 1)]
    return FileRows(rows, findings=findings)


def _is_list_of_objects(value: object) -> bool:
    items = cast("list[object]", value) if isinstance(value, list) else []
    return bool(items) and all(isinstance(item, dict) for item in items)


def _is_row_with_list(fields: Mapping[str, object]) -> bool:
    """Return whether an object is a row itself, such as a chat: its list holds turns, not rows."""
    return any(name in fields for name in ("messages", "conversations"))


def _rows_of_columns(fields: Mapping[str, object]) -> list[Row]:
    """Return the rows of `{"text": [...], "label": [...]}`, or with `{"0": ..., "1": ...}` for each column.

    Empty if the object is not of this layout.
    """
    columns: dict[str, dict[object, object]] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            columns[name] = cast("dict[object, object]", value)
        elif isinstance(value, list):
            columns[name] = dict(enumerate(cast("list[object]", value)))
        else:
            return []
    keys = [list(column) for column in columns.values()]
    if len(keys) < 2 or any(other != keys[0] for other in keys):  # noqa: PLR2004 (a text and a label)
        return []
    return [{name: column[key] for name, column in columns.items()} for key in keys[0]]


def _row(value: object, place: str) -> Row:
    if not isinstance(value, dict):
        excerpt = json.dumps(value, ensure_ascii=False)[:_SHOWN_CHARACTERS]
        raise DataError(
            f'{place} is {excerpt}; write an object with names, such as {{"text": …, "label": …}}.'
        )
    return cast("dict[str, object]", value)


def _parse(text: str, place: str, max_values: int, remedy: str = _REMEDY) -> object:
    """Return the value of a JSON text.

    Raises:
        DataError: If it is no JSON, repeats a key, or is deeper or larger than allowed.
    """
    check_values(place, text, "[{,", max_values)
    try:
        value = json.loads(text, object_pairs_hook=unique_pairs)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if "\n" in text else ""
        raise DataError(
            f"{place} is no JSON ({error.msg}, {where}character {error.colno}); {remedy}."
        ) from error
    except RecursionError as error:
        raise _too_deep(place) from error
    except ValueError as error:
        raise DataError(f"{place} is no JSON ({reason_of(error)}); correct it.") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep(place)
    if "\\u" in text:
        _check_characters(value, place)
        if _NUL.search(text):
            raise DataError(f"{place} has a NUL character (\\u0000), which no text has; remove it.")
    return value


def _too_deep(place: str) -> DataError:
    return DataError(f"{place} has more than {MAX_DEPTH} lists and objects within each other; flatten it.")


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [item for parent in level for item in _children(parent)]
    return depth - 1


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []


def _check_characters(value: object, place: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place} has half a character (\\u{ord(error.object[error.start]):04x}); "
            "write it as a pair, or remove it."
        ) from error
