"""What the rows of a study were asked for: what all have alike, and what each has of its own."""

from rankfold.report.rows import Row, Settings
from rankfold.report.study import Study
from rankfold.runs.records import value_text

SETTINGS_COLUMNS = ("method", "settings of its own")


def settings_text(study: Study) -> str:
    """Return what all rows have alike: "All rows: steps=120, batch_size=8."; "" if that is nothing."""
    shared = _text(_shared(study))
    whose = study.rows[0].label if len(study.rows) == 1 else "All rows"
    return f"{whose}: {shared}." if shared else ""


def settings_cells(study: Study) -> list[list[str]]:
    """Return the rows of the table: the method's name with its options and what else is its own."""
    shared = _shared(study)
    return [[row.label, _own(row, shared)] for row in study.rows] if len(study.rows) > 1 else []


def _shared(study: Study) -> Settings:
    first, *others = [row.settings for row in study.rows]
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def _own(row: Row, shared: Settings) -> str:
    return _text({name: value for name, value in row.settings.items() if name not in shared}) or "–"


def _text(settings: Settings) -> str:
    return ", ".join(f"{name}={value_text(value)}" for name, value in settings.items() if value is not None)
