"""Whether the rows of a study were trained with one budget, in words."""

from collections.abc import Mapping, Sequence

from rankfold.report.rows import Row
from rankfold.report.words import listed

# What a budget is made of, by the names of a row's settings.
_PARTS = {"steps": "steps", "batch_size": "rows in each", "rows": "training rows"}
_MOST_NAMES = 3


def budgets_text(rows: Sequence[Row]) -> str:
    """Return in what the budgets of rows differ: "The budgets differ: 3 steps (tlora), 1 (lora)."; else "".

    Args:
        rows: The rows of a study; those without a finished run used up no budget.
    """
    trained = [row for row in rows if row.records]
    parts = [_differing(name, trained) for name in _PARTS] + [_reduced(trained)]
    found = "; ".join(filter(None, parts))
    return f"The budgets differ: {found}." if found else ""


def _differing(name: str, rows: Sequence[Row]) -> str:
    """Return the values of a part of the budget with the rows that have them; "" if all have one."""
    labels: dict[object, list[str]] = {}
    for row in rows:
        if name in row.settings:  # what tuning chose is not among them
            labels.setdefault(row.settings[name], []).append(row.label)
    if len(labels) < 2:  # noqa: PLR2004
        return ""
    return f"{_PARTS[name]} {_with_labels(labels)}"


def _with_labels(labels: Mapping[object, Sequence[str]]) -> str:
    return ", ".join(f"{value:,} ({_named(names)})" for value, names in labels.items())


def _reduced(rows: Sequence[Row]) -> str:
    """Return which rows have a Reducer, under which layers rest; "" if all have one, or none has."""
    reduced = [row.label for row in rows if "reducer" in row.settings]
    return f"a Reducer lets layers rest in {_named(reduced)}" if 0 < len(reduced) < len(rows) else ""


def _named(labels: Sequence[str]) -> str:
    return listed(labels) if len(labels) <= _MOST_NAMES else f"{len(labels)} methods"
