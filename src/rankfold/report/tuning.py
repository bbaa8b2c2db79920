"""How each method of a study was tuned: the trials that were made for it, and what was chosen of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankfold.report.rows import Row, Settings, method_settings
from rankfold.runs.record import RunRecord, TuningPart
from rankfold.runs.records import label_with_all


@dataclass(frozen=True, slots=True)
class Tuned:
    """One method's trials.

    Attributes:
        label: The row it was tuned for; a row of the same sweep may have taken over its values.
        trials: The runs, in the order they were made.
        chosen: Values and score of what was taken; None as long as no run has used it.
    """

    label: str
    trials: tuple[RunRecord, ...]
    chosen: TuningPart | None


def is_trial(record: RunRecord) -> bool:
    """Return whether a run was made to choose settings: it is measured on rows cut from training."""
    return record.tuning is not None and record.tuning.trial is not None


def make_tuned(trials: Sequence[RunRecord], rows: Sequence[Row]) -> tuple[Tuned, ...]:
    """Sort the trials of a study by the method that they were made for.

    Args:
        trials: Runs for which `is_trial` holds.
        rows: The rows of the study.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in trials:
        groups.setdefault(_shared_by(record), []).append(record)
    of_row = {_shared_by(row.runs[0]): row for row in reversed(rows) if row.tuning}
    order = {row.label: place for place, row in enumerate(rows)}
    found = [_tuned(records, of_row.get(shared)) for shared, records in groups.items()]
    return tuple(sorted(found, key=lambda each: order.get(each.label, len(order))))


def tried(record: RunRecord) -> Mapping[str, object]:
    """Return the values that a trial tries."""
    return record.tuning.values if record.tuning else {}


def _tuned(records: Sequence[RunRecord], row: Row | None) -> Tuned:
    label = row.label if row else label_with_all(records[0].method.name, _fixed(records[0]))
    latest = {record.tuning.trial: record for record in records if record.tuning}
    in_order = tuple(latest[number] for number in sorted(latest, key=lambda number: number or 0))
    return Tuned(label, in_order, row.tuning if row else None)


def _shared_by(record: RunRecord) -> str:
    """Return what the trials of a method have in common with its row, in whatever order it was written."""
    return json.dumps([record.method.name, _fixed(record)], sort_keys=True)


def _fixed(record: RunRecord) -> Settings:
    """Return the settings that are no trial's own."""
    changed = record.tuning.values if record.tuning else ()
    return {key: value for key, value in method_settings(record).items() if key not in changed}
