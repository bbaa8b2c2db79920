"""Class labels: values of the data as class ids; any value that is no known class is an error that names it.

A class is named by the text of its value, so that 1, "1" and a CSV file's 1 are one class, and "01" is
another.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from rankfold.errors import DataError
from rankfold.tasks.data.numbers import (
    MISSING_NUMBERS,
    Decimal,
    NumberFormat,
    find_number_format,
    is_code_like,
    is_missing,
    is_number_text,
)
from rankfold.tasks.data.table import Row, Table, quote_list
from rankfold.tasks.data.texts import DROP_REMEDY

# So many different values are no longer a scale of a few steps, such as marks or stars.
_FEW = 20
# Up to so many classes, each row may have one of its own.
_FEW_UNIQUE = 10
_LISTED_VALUES = 10
_SHOWN_CHARACTERS = 60
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b|\d{1,2}:\d{2}\b")
# The share of a column that has to be numbers for the rest to be gaps in it.
_MOST = 0.9


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a classification.

    Args:
        names: Class names in the order of their ids.
        ids: The id of each value that the data may hold, as text.
    """

    names: tuple[str, ...]
    ids: Mapping[str, int]


def find_labels(
    column: str,
    splits: Mapping[str, Sequence[str]],
    names: Sequence[str] | None,
    learned_names: Sequence[str] | None = None,
    *,
    tables: Mapping[str, Table] | None = None,
) -> Labels:
    """Return the classes of a column, sorted, and check that every split stays within those of the first.

    Args:
        column: Where the labels are.
        splits: Labels by split name, in the order of the rows; the first split, the training split, defines
            which there are.
        names: The class names in the order that the data has them, if they are known; then labels are names,
            or places among them.
        learned_names: The class names in the order in which a model has learned them, if one has; then these
            are the classes, whatever order the data has.
        tables: The rows by split, for messages; numbered from 1 if None.

    Raises:
        DataError: If a split has labels of its own, or that were not learned, there is only one, or most rows
            have one of their own.
    """
    first = next(iter(splits))
    if learned_names is not None:
        labels = Labels(tuple(learned_names), _learned_ids(names, learned_names))
    elif names is not None:
        labels = Labels(tuple(names), _ids_of(names))
    else:
        classes = sort_names(splits[first])
        labels = Labels(classes, _ids_of(classes, by_name=True))
        check_repeated(column, splits[first])
    for split, values in splits.items():
        check_published(split, values, labels.ids)
        unknown = sort_names(value for value in values if value not in labels.ids)
        if unknown:
            table = Table(tuple(dict[str, object]() for _ in values)) if tables is None else tables[split]
            quoted = ", ".join(_with_rows(value, values, table) for value in unknown[:_LISTED_VALUES])
            raise _unknown_labels(split, quoted, unknown, labels, column, names, learned_names)
    if len(labels.names) < 2:  # noqa: PLR2004
        raise DataError(
            f"all labels in '{column}' are {quote_list(labels.ids)}; a classification needs two or more."
        )
    return labels


def _unknown_labels(
    split: str,
    quoted: str,
    unknown: Sequence[str],
    labels: Labels,
    column: str,
    names: Sequence[str] | None,
    learned_names: Sequence[str] | None,
) -> DataError:
    if learned_names is not None:
        own_names = [_name_in(names or (), value) for value in unknown]
        named = quoted if own_names == list(unknown) else quote_list(own_names)
        return DataError(f"the split '{split}' has the labels {_not_learned(named, learned_names)}")
    return DataError(
        f"the split '{split}' has the labels {quoted}, but the "
        f"{len(labels.names)} labels of '{column}' are {quote_list(labels.names)}; "
        f"give every split the same labels{_or_regression(labels.names)}."
    )


def _with_rows(value: str, values: Sequence[str], table: Table) -> str:
    """Return a label with the rows that have it: "'c' (rows 3, 17)"."""
    positions = [position for position, other in enumerate(values) if other == value]
    return f"'{value}' ({table.locate_rows(positions)})"


def sort_names(values: Iterable[str]) -> tuple[str, ...]:
    """Return the different names in order: by their value if all are whole numbers, else by their letters."""
    names = set(values)
    if all(_is_whole(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def check_repeated(column: str, values: Sequence[str]) -> None:
    """Check that classes have several rows each, as labels of a classification do.

    Raises:
        DataError: If most rows have one of their own.
    """
    classes = sort_names(values)
    if len(classes) > _FEW_UNIQUE and 2 * len(classes) > len(values):
        raise DataError(
            f"'{column}' has {len(classes)} different values in {len(values)} rows, such as "
            f"{quote_list(classes[:3])}, which are no classes; name the column of the classes with "
            f"--label-column{_or_regression(classes)}."
        )


def _ids_of(names: Sequence[str], *, by_name: bool = False) -> dict[str, int]:
    """Return the id of each text that means a class: its name or, where names are words, its place."""
    ids = {name: index for index, name in enumerate(names)}
    if not by_name and not any(map(_is_whole, names)):
        ids |= {str(index): index for index in range(len(names))}
    return ids


def _learned_ids(names: Sequence[str] | None, learned_names: Sequence[str]) -> dict[str, int]:
    """Return the learned class of each text that means one, by its name.

    Args:
        names: The names that the data has for the places it holds; None if it does not name its classes.
        learned_names: The names in the order of the classes.
    """
    by_name = _ids_of(learned_names, by_name=True)
    # A model that has learned bare numbers knows no names.
    if names is None or all(map(_is_whole, learned_names)):
        return by_name
    own_ids = _ids_of(names)
    return {value: by_name[names[place]] for value, place in own_ids.items() if names[place] in by_name}


def check_label_lists(
    column: str,
    tables: Mapping[str, Table],
    splits: Mapping[str, Sequence[Sequence[str]]],
    names: Sequence[str],
    learned_names: Sequence[str] | None,
    *,
    noun: str = "label",
) -> None:
    """Check that lists of labels have two different ones or more, and that every split stays within them.

    Args:
        column: Where they are.
        tables: The rows by split, for messages.
        splits: The labels of each row by split.
        names: The labels of the training split, or those that a model has learned.
        learned_names: The latter, if one has.
        noun: The word for a label.

    Raises:
        DataError: If there are fewer, or a split has labels of its own, with the row.
    """
    if len(names) < 2:  # noqa: PLR2004
        raise DataError(f"'{column}' has {len(names)} different {noun}s; learning takes two or more.")
    known_names = set(names)
    for split, rows in splits.items():
        for position, row in enumerate(rows):
            unknown = list(dict.fromkeys(name for name in row if name not in known_names))
            place = tables[split].locate_rows([position], split) if unknown else ""
            if unknown and learned_names:
                raise DataError(f"{place} has the {noun}s {not_learned(unknown, names)}")
            if unknown:
                raise DataError(
                    f"{place} has the {noun} '{unknown[0]}', which no row of the training split has; "
                    f"give every split the same {noun}s."
                )


def not_learned(labels: Sequence[object], learned_names: Sequence[str]) -> str:
    """Return the end of an error about labels that a model has not learned."""
    return _not_learned(quote_list(labels), learned_names)


def _not_learned(quoted: str, learned_names: Sequence[str]) -> str:
    classes = quote_list(learned_names)
    return f"{quoted}, but the learned classes are {classes}; use data with the same classes."


def check_published(split: str, values: Iterable[float | str], classes: Iterable[object] = ()) -> None:
    """Check that the labels of a split are not kept back, as those of a test split often are: all are -1.

    Args:
        split: Its name.
        values: Its labels.
        classes: The labels there are, where they are known.

    Raises:
        DataError: If they are.
    """
    if {str(value) for value in set(values)} in ({"-1"}, {"-1.0"}) and "-1" not in classes:
        raise DataError(
            f"the labels of the split '{split}' are kept back: all are -1; use a split that has them."
        )


def label_of(row: Row, column: str) -> str:
    """Return the label of a row for classification, as text.

    Raises:
        DataError: If it is missing, or neither a whole number, nor a truth value, nor a text.
    """
    value = row.get(column)
    if value is None or value == "" or value != value:  # noqa: PLR0124 (only NaN differs from itself)
        raise DataError(f"there is no label in '{column}' (it holds '{value}'); {DROP_REMEDY}.")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | str):
        return str(value)
    remedy = "write it as a text"
    if isinstance(value, float):
        remedy = "for measurements use --kind regression"
    elif isinstance(value, list | dict):
        remedy = "give each row one label, or learn several with --kind multi_label"
    shown = _cut(str(cast(object, value)))
    raise DataError(f"the label '{shown}' in '{column}' is neither a whole number nor a text; {remedy}.")


def number_of(row: Row, column: str, number_format: NumberFormat | None = None) -> float:
    """Return the label of a row for regression; a number may be written as a text.

    Args:
        row: The row.
        column: Where the number is.
        number_format: How texts are read; plain numbers if None.

    Raises:
        DataError: If it is not a finite number.
    """
    value = row.get(column)
    number = (number_format or NumberFormat()).read(value)
    if number is None:
        remedy = DROP_REMEDY if is_missing(value, MISSING_NUMBERS) else number_remedy(value)
        raise DataError(f"'{column}' holds '{_cut(str(value))}' where a number is needed; {remedy}.")
    return number


def number_remedy(value: object) -> str:
    """Return the remedy for a value that is no number, as the end of an error."""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return "learn truth values with --kind classification"
    if isinstance(value, list | dict):
        return "give each row one number"
    if _DATE.match(text):
        return "write a number, such as days or seconds since a fixed time"
    has_digits = any(map(str.isdigit, text))
    return f"write plain numbers such as 1234.5{'' if has_digits else ', correct or remove the row'}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def column_format(
    values: Iterable[object],
    column: str,
    decimal: Decimal | None = None,
    quote: Callable[[str], str] = "'{}'".format,
) -> NumberFormat | None:
    """Return the format of the numbers in a column; None if it holds no numbers.

    Missing values do not count, and up to a tenth of other texts neither: reading them names their rows.

    Args:
        values: Those of the column.
        column: Its name.
        decimal: The decimal separator, if somebody has named it.
        quote: Returns a text as messages quote it, perhaps with its place.

    Raises:
        DataError: If the texts are numbers in more than one format.
    """
    texts = [value.strip() for value in values if isinstance(value, str)]
    texts = [text for text in texts if not is_missing(text, MISSING_NUMBERS)]
    readable = [text for text in texts if is_number_text(text)]
    if not texts:
        return NumberFormat()
    if len(readable) < _MOST * len(texts):
        return None
    try:
        return find_number_format(readable, decimal, quote)
    except DataError as error:
        raise DataError(f"in '{column}' {error}") from error


def is_measured(values: Sequence[object], column: str) -> bool:
    """Return whether a column holds measurements rather than classes, where nobody has said so.

    These are numbers with fractions; and numbers with a unit or with separators, unless there are few
    different ones. Whole numbers count as classes.

    Raises:
        DataError: If the numbers could mean either.
    """
    present = [value for value in values if not is_missing(value)]
    floats = [value for value in present if isinstance(value, float)]
    if floats:
        if all(value.is_integer() for value in floats):
            raise _ambiguous(column, "whole numbers written as floats")
        return True
    texts = [value.strip() for value in present if isinstance(value, str)]
    return bool(texts) and len(texts) == len(present) and _are_measured(texts, column)


def _are_measured(texts: Sequence[str], column: str) -> bool:
    different = set(texts)
    is_scale = len(different) <= _FEW and 2 * len(different) <= len(texts)
    try:
        number_format = column_format(texts, column)
    except DataError:  # such as "10 EUR" and "10 USD"; reading them as numbers names the fault
        return not is_scale
    if number_format is None or (number_format != NumberFormat() and is_scale):
        return False
    if number_format != NumberFormat():
        return True
    numbers = [number for text in different if (number := number_format.read(text)) is not None]
    if all(map(_is_whole, different - _missing_words(different))) or is_code_like(different):
        return False
    if is_scale or all(number.is_integer() for number in numbers):
        raise _ambiguous(column, "a few numbers with a point")
    return True


def _missing_words(texts: Iterable[str]) -> set[str]:
    return {text for text in texts if is_missing(text, MISSING_NUMBERS)}


def _ambiguous(column: str, noun: str) -> DataError:
    return DataError(
        f"the labels in '{column}' are {noun}; "
        "say which is meant with --kind classification or --kind regression."
    )


def count_labels(labels: Iterable[str]) -> list[tuple[str, int]]:
    """Return labels with how often each is there, the commonest first."""
    return sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))


def _or_regression(labels: Iterable[str]) -> str:
    """Return a hint at regression where most labels are numbers, however they are written."""
    numbers = [is_number_text(label) for label in labels]
    return ", or --kind regression if they are measurements" if 2 * sum(numbers) > len(numbers) else ""


def _name_in(names: Sequence[str], value: str) -> str:
    """Return the name of a label in the data; the label itself if it has none."""
    return names[int(value)] if _is_whole(value) and 0 <= int(value) < len(names) else value
