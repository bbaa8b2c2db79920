"""Labels: values of the data as class ids or numbers; any other value is an error that names it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rankfold.errors import DataError
from rankfold.tasks.data.read import Row


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a classification.

    Args:
        names: Class names in the order of their ids.
        ids: The id of each value the data may hold.
    """

    names: tuple[str, ...]
    ids: Mapping[object, int]


def find_labels(
    column: str,
    splits: Mapping[str, Iterable[int | str]],
    names: Sequence[str] | None,
    learned_names: Sequence[str] | None = None,
) -> Labels:
    """Return the classes of a column, sorted, and check that every split stays within those of the first.

    Args:
        column: Where the labels are.
        splits: Labels by split name; the first split, the training split, defines which there are.
        names: The class names in the order that the data has them, if they are known; then labels are places
            in it or names.
        learned_names: The class names in the order in which a model has learned them, if one has; then these
            are the classes, whatever order the data has.

    Raises:
        DataError: If a split has labels of its own, or that were not learned, or types are mixed.
    """
    values = {split: set(labels) for split, labels in splits.items()}
    kinds = sorted({type(value).__name__ for labels in values.values() for value in labels})
    if len(kinds) > 1:
        raise DataError(f"the labels in '{column}' mix {' and '.join(kinds)}; use one type in every split.")
    first = next(iter(values))
    by_name = "str" in kinds
    if learned_names is not None:
        ids = None if names is None else _known_ids(names, by_name=by_name)
        labels = Labels(tuple(learned_names), _learned_ids(ids, names or (), learned_names, by_name=by_name))
    elif names is not None:
        labels = Labels(tuple(names), _known_ids(names, by_name=by_name))
    else:
        classes = sorted(values[first], key=_sort_key)
        labels = Labels(
            tuple(_name(value) for value in classes), {value: i for i, value in enumerate(classes)}
        )
    for split, own_labels in values.items():
        check_published(split, own_labels, labels.ids)
        unknown = sorted(own_labels - set(labels.ids), key=_sort_key)
        if unknown and learned_names is not None:
            own_names = [_name_in(names or (), value) for value in unknown]
            raise DataError(f"the split '{split}' has the labels {not_learned(own_names, learned_names)}")
        if unknown:
            raise DataError(
                f"the split '{split}' has the labels {_quote_list(unknown)}, but the "
                f"{len(labels.ids)} labels of '{column}' are {_quote_list(labels.ids)}; "
                f"give every split the same labels{_or_regression(labels.ids)}."
            )
    if len(labels.names) < 2:  # noqa: PLR2004
        raise DataError(
            f"all labels in '{column}' are {_quote_list(labels.ids)}; a classification needs two or more."
        )
    return labels


def _known_ids(names: Sequence[str], *, by_name: bool) -> dict[object, int]:
    # Classes without names are named after their numbers, which need not count from 0.
    is_number = all(name.lstrip("-").isdecimal() for name in names)
    return {
        (name if by_name else int(name) if is_number else index): index for index, name in enumerate(names)
    }


def _learned_ids(
    ids: Mapping[object, int] | None, names: Sequence[str], learned_names: Sequence[str], *, by_name: bool
) -> dict[object, int]:
    """Return the learned class of each value that means one: by its name, or by its number.

    Args:
        ids: The place in `known` of each value; None if the data does not name its classes.
        names: The names the data has for them.
        learned_names: The names in the order of the classes.
        by_name: Whether values are names.
    """
    number_ids = _known_ids(learned_names, by_name=by_name)
    if ids is None:
        return number_ids
    places = {name: place for place, name in enumerate(learned_names)}
    # A model that has learned bare numbers knows no names.
    has_names = not all(name.lstrip("-").isdecimal() for name in learned_names)
    ids_by_value = {value: places.get(names[place]) for value, place in ids.items()}
    if not has_names:
        ids_by_value = {
            value: number_ids.get(value) if place is None else place for value, place in ids_by_value.items()
        }
    return {value: place for value, place in ids_by_value.items() if place is not None}


def not_learned(labels: Sequence[object], learned_names: Sequence[str]) -> str:
    """Return the end of an error about labels that a model has not learned."""
    classes = _quote_list(learned_names)
    return f"{_quote_list(labels)}, but the learned classes are {classes}; use data with the same classes."


def check_published(split: str, values: Iterable[float | str], classes: Iterable[object] = ()) -> None:
    """Check that the labels of a split are not kept back, as those of a test split often are: all are -1.

    Args:
        split: Its name.
        values: Its labels.
        classes: The labels there are, where they are known.

    Raises:
        DataError: If they are.
    """
    if set(values) == {-1} and -1 not in classes:
        raise DataError(
            f"the labels of the split '{split}' are kept back: all are -1; use a split that has them."
        )


def label_of(row: Row, column: str) -> int | str:
    """Return the label of a row for classification.

    Raises:
        DataError: If it is missing, or neither a whole number, nor a truth value, nor a text.
    """
    value = row.get(column)
    if value is None or value == "" or value != value:  # noqa: PLR0124 (only NaN differs from itself)
        raise DataError(f"there is no label in '{column}' (it holds '{value}'); mend or remove the row.")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | str):
        return value
    remedy = (
        "for measurements use --kind regression" if isinstance(value, float) else "give each row one label"
    )
    raise DataError(f"the label '{value}' in '{column}' is neither a whole number nor a text; {remedy}.")


def number_of(row: Row, column: str) -> float:
    """Return the label of a row for regression; a number may be written as a text.

    Raises:
        DataError: If it is not a finite number.
    """
    value = row.get(column)
    number = None if isinstance(value, bool) else _number(value)
    if number is None:
        raise DataError(f"'{column}' holds '{value}' where a number is needed; mend or remove the row.")
    return number


def _number(value: object) -> float | None:
    """Return a finite number, or a text that is one; None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _or_regression(labels: Iterable[object]) -> str:
    """Return a hint at regression where most labels are numbers, however they are written."""
    numbers = [_number(label) is not None for label in labels]
    return ", or --kind regression if they are measurements" if 2 * sum(numbers) > len(numbers) else ""


def _sort_key(value: object) -> tuple[str, int | str]:
    return (type(value).__name__, value if isinstance(value, int | str) else str(value))


def _name(value: object) -> str:
    return str(value)


def _name_in(names: Sequence[str], value: int | str) -> int | str:
    """Return the name of a label in the data; the label itself if it has none."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _quote_list(values: Sequence[object] | Mapping[object, object]) -> str:
    quoted_values = [f"'{value}'" for value in list(values)[:10]]
    return ", ".join(quoted_values) + (", …" if len(values) > len(quoted_values) else "")
