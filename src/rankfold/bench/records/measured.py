"""What a run was measured on: results on other rows, or asked in another way, do not belong together."""

import logging
from collections.abc import Iterable

from rankfold.bench.records.record import RunRecord

logger = logging.getLogger("rankfold.bench")

Measured = tuple[str, int]
"""The hash of the rows, and the version of the task; a task without version counts as 1."""


def measured_on(record: RunRecord) -> Measured:
    """Return what a run was measured on."""
    return record.data.sha256, record.task.version or 1


def note_different_data(records: Iterable[RunRecord]) -> None:
    """Log a warning for every task of which some runs were measured on other rows than the rest."""
    found: dict[tuple[str, str], set[Measured]] = {}
    for record in records:
        found.setdefault((record.task.name, record.model.name), set()).add(measured_on(record))
    for (task, model), different in found.items():
        if len(different) > 1:
            logger.warning(
                "the runs on '%s' with '%s' were measured on %d different sets of rows or versions of the "
                "task; each has a table of its own, and they are not compared.",
                *(task, model, len(different)),
            )
