"""Labels as the data has them become class ids or numbers; what cannot is an error that names the value."""

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
    known: Sequence[str] | None,
    learned: Sequence[str] | None = None,
) -> Labels:
    """Return the classes of a column, sorted, and check that every split stays within those of the first.

    Args:
        column: Where the labels are.
        splits: Labels by split name; the first split, the training split, defines which there are.
        known: The class names in the order that the data has them, if they are known; then labels are places
            in it or names.
        learned: The class names in the order in which a model has learned them, if one has; then these are
            the classes, whatever order the data has.

    Raises:
        DataError: If a split has labels of its own, or that were not learned, or types are mixed.
    """
    values = {split: set(labels) for split, labels in splits.items()}
    kinds = sorted({type(value).__name__ for found in values.values() for value in found})
    if len(kinds) > 1:
        raise DataError(f"the labels in '{column}' mix {' and '.join(kinds)}; use one type in every split.")
    first = next(iter(values))
    by_name = "str" in kinds
    if learned is not None:
        ids = None if known is None else _known_ids(known, by_name=by_name)
        labels = Labels(tuple(learned), _learned_ids(ids, known or (), learned, by_name=by_name))
    elif known is not None:
        labels = Labels(tuple(known), _known_ids(known, by_name=by_name))
    else:
        ordered = sorted(values[first], key=_sort_key)
        labels = Labels(
            tuple(_name(value) for value in ordered), {value: i for i, value in enumerate(ordered)}
        )
    for split, found in values.items():
        check_published(split, found, labels.ids)
        unknown = sorted(found - set(labels.ids), key=_sort_key)
        if unknown and learned is not None:
            named = [_name_in(known or (), value) for value in unknown]
            raise DataError(f"the split '{split}' has the labels {not_learned(named, learned)}")
        if unknown:
            raise DataError(
                f"the split '{split}' has the labels {_listed(unknown)}, but the {len(labels.ids)} labels of "
                f"'{column}' are {_listed(labels.ids)}; give every split the same labels"
                f"{_or_regression(labels.ids)}."
            )
    if len(labels.names) < 2:  # noqa: PLR2004
        raise DataError(
            f"all labels in '{column}' are {_listed(labels.ids)}; a classification needs two or more."
        )
    return labels


def _known_ids(names: Sequence[str], *, by_name: bool) -> dict[object, int]:
    # Classes without names are named after their numbers, which need not count from 0.
    is_number = all(name.lstrip("-").isdecimal() for name in names)
    return {
        (name if by_name else int(name) if is_number else index): index for index, name in enumerate(names)
    }


def _learned_ids(
    ids: Mapping[object, int] | None, known: Sequence[str], learned: Sequence[str], *, by_name: bool
) -> dict[object, int]:
    """Return the learned class of each value that means one: by its name, or by its number.

    Args:
        ids: The place in `known` of each value; None if the data does not name its classes.
        known: The names the data has for them.
        learned: The names in the order of the classes.
        by_name: Whether values are names.
    """
    numbered = _known_ids(learned, by_name=by_name)
    if ids is None:
        return numbered
    places = {name: place for place, name in enumerate(learned)}
    # A model that has learned bare numbers knows no names.
    has_names = not all(name.lstrip("-").isdecimal() for name in learned)
    found = {value: places.get(known[place]) for value, place in ids.items()}
    if not has_names:
        found = {value: numbered.get(value) if place is None else place for value, place in found.items()}
    return {value: place for value, place in found.items() if place is not None}


def not_learned(labels: Sequence[object], learned: Sequence[str]) -> str:
    """Return what is wrong with labels that are none of the classes a model has learned."""
    return f"{_listed(labels)}, but what was learned is {_listed(learned)}; take data with the same classes."


def check_published(split: str, values: Iterable[float | str], known: Iterable[object] = ()) -> None:
    """Check that the labels of a split are not kept back, as those of a test split often are: all are -1.

    Args:
        split: Its name.
        values: Its labels.
        known: The labels there are, where they are known.

    Raises:
        DataError: If they are.
    """
    if set(values) == {-1} and -1 not in known:
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
    """Return what else may be meant where most labels are numbers, whichever way they are written."""
    numbers = [_number(label) is not None for label in labels]
    return ", or --kind regression if they are measurements" if 2 * sum(numbers) > len(numbers) else ""


def _sort_key(value: object) -> tuple[str, int | str]:
    return (type(value).__name__, value if isinstance(value, int | str) else str(value))


def _name(value: object) -> str:
    return str(value)


def _name_in(known: Sequence[str], value: int | str) -> int | str:
    """Return what the data calls a label; itself if it has no name."""
    return known[value] if isinstance(value, int) and 0 <= value < len(known) else value


def _listed(values: Sequence[object] | Mapping[object, object]) -> str:
    shown = [f"'{value}'" for value in list(values)[:10]]
    return ", ".join(shown) + (", …" if len(values) > len(shown) else "")
