"""Several studies at a glance: methods as rows, tasks and models as columns."""

from collections.abc import Sequence

from rankfold.report.rows import Row
from rankfold.report.study import Study
from rankfold.report.words import metric_name, score_text, verdict_text


def overview_columns(studies: Sequence[Study]) -> list[str]:
    """Return the headings: a column for each study."""
    return ["method", *(f"{heading(study)} ({metric_name(study.metric)})" for study in studies)]


def heading(study: Study) -> str:
    """Return the name of a study: its task and its model."""
    return f"{study.task} with {study.model}"


def overview_labels(studies: Sequence[Study]) -> list[str]:
    """Return every method once, in the order of the studies."""
    return list(dict.fromkeys(row.label for study in studies for row in study.rows))


def overview_rows(studies: Sequence[Study]) -> list[tuple[str, list[Row | None]]]:
    """Return every method with its row in each study, or None where a study does not have it."""
    found = [{row.label: row for row in study.rows} for study in studies]
    return [(label, [rows.get(label) for rows in found]) for label in overview_labels(studies)]


def overview_cells(studies: Sequence[Study]) -> list[list[str]]:
    """Return the table: the mean and what it says against the reference of the study."""
    return [[label, *map(_cell, rows)] for label, rows in overview_rows(studies)]


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{score_text(row.score)} {verdict_text(row)}" if row.records else "failed"
