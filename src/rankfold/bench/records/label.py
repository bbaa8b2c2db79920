"""Names for rows: the method, and of its settings only those that tell it from its other rows."""

from collections.abc import Container, Mapping, Sequence
from typing import cast

from pydantic import JsonValue

Settings = Mapping[str, object]


def labels_of(entries: Sequence[tuple[str, Settings]]) -> list[str]:
    """Return one label per entry, which names the settings in which entries of one method differ.

    Numbers are written with six digits, so labels are equal where settings differ by less.

    Args:
        entries: The method's name with all its settings.

    Example:
        >>> labels_of([("lora", {"r": 8}), ("lora", {"r": 16}), ("tlora", {"r": 8})])
        ['lora r=8', 'lora r=16', 'tlora']
    """
    return [
        label_of(name, settings, differing([s for other, s in entries if other == name]))
        for name, settings in entries
    ]


def label_of(name: str, settings: Settings, keys: Container[str]) -> str:
    """Return the method with those of its settings that have one of the keys."""
    return label_with_all(name, {key: value for key, value in settings.items() if key in keys})


def differing(siblings: Sequence[Settings]) -> set[str]:
    """Return the keys in which some of the settings differ, or that some of them lack."""
    return {
        key
        for settings in siblings
        for key, value in settings.items()
        if any(key not in other or other[key] != value for other in siblings)
    }


def label_with_all(name: str, settings: Settings) -> str:
    """Return the method with every setting."""
    return " ".join([name, *(f"{key}={value_text(value)}" for key, value in settings.items())])


def reducer_settings(options: Mapping[str, JsonValue] | None) -> dict[str, object]:
    """Return the options of a Reducer as settings of a method; none if there is no Reducer."""
    if options is None:
        return {}
    return {"reducer": "on", **{f"reducer.{name}": value for name, value in options.items()}}


def value_text(value: object) -> str:
    """Return a value as a label has it: "0.001", "8", "1,2"."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(value_text(item) for item in cast("Sequence[object]", value))
    return str(value)
