"""Tables as plain text cells: results, overview of several studies, settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from rankfold.report.format import (
    bytes_text,
    difference_text,
    metric_name,
    range_text,
    score_text,
    seconds_text,
)
from rankfold.report.results import Result, Settings
from rankfold.report.study import Study
from rankfold.runs.record import RunRecord
from rankfold.runs.records import value_text

_LONG_LABEL = 20


def columns(study: Study) -> list[str]:
    """Return the headings of the results table."""
    reference = study.results[0].label
    return [
        "method",
        f"{metric_name(study.metric)} (95 %)",
        f"difference to {reference if len(reference) <= _LONG_LABEL else 'the reference'}",
        "verdict",
        "trainable",
        "on disk",
        "time",
        *(["step (95 %)"] if study.step_times else []),
        "seeds",
        *(["trials"] if study.is_tuned else []),
    ]


def cells(study: Study) -> list[list[str]]:
    """Return the results table: one row per method, then one per baseline."""
    found = [_result_cells(study, row) for row in study.results]
    for name, value in study.baselines.items():
        baseline = [f"({baseline_name(name)})", f"{value:.3f}", "", "", "0"]
        found.append([*baseline, *[""] * (len(columns(study)) - len(baseline))])
    return found


def baseline_name(name: str) -> str:
    """Return a baseline as it is written in a table: "majority" is "majority class"."""
    return {"majority": "majority class", "mean": "mean of the labels"}.get(name, name.replace("_", " "))


def seeds_text(row: Result) -> str:
    """Return how many runs ended well, and how many did not: "3", "2 of 3", "0 of 1"."""
    done, failed = len(row.records), len(row.failures)
    return f"{done} of {done + failed}" if failed else str(done)


def verdict_text(row: Result) -> str:
    """Return what a row's difference says, with a shape: "▲ better"; "failed" if no run ended well."""
    if not row.records:
        return "failed"
    shape = {"better": "▲ ", "worse": "▼ ", "not separated": "≈ "}.get(row.verdict, "")
    return f"{shape}{row.verdict}"


def _result_cells(study: Study, row: Result) -> list[str]:
    difference = ""
    if row.difference:
        difference = difference_text(row.difference.interval)
    trainable = row.mean(lambda run: run.parameters.trainable)
    size = row.mean(lambda run: run.bytes.weights_file)
    seconds = row.mean(lambda run: run.seconds.total)
    return [
        row.label,
        f"{score_text(row.score)} {range_text(row.score)}".strip(),
        difference,
        verdict_text(row),
        "–" if trainable is None else f"{trainable:,.0f}",
        "–" if size is None else bytes_text(size),
        "–" if seconds is None else seconds_text(seconds),
        *([_step(study, row)] if study.step_times else []),
        seeds_text(row),
        *([_trials(row)] if study.is_tuned else []),
    ]


def _step(study: Study, row: Result) -> str:
    """Return the time of a step beside the reference's, "×1.25 [1.20, 1.31]"."""
    if row is study.results[0]:
        return "×1.00"
    found = study.step_times.get(row.label)
    return f"×{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "–"


def _trials(row: Result) -> str:
    return str(row.tuning.trials) if row.tuning else "–"


def reason(record: RunRecord) -> str:
    """Return why a run failed, in one line."""
    return " ".join((record.error or "no reason was recorded").split())


def overview_columns(studies: Sequence[Study]) -> list[str]:
    """Return the headings: a column for each study."""
    return ["method", *(f"{heading(study)} ({metric_name(study.metric)})" for study in studies)]


def heading(study: Study) -> str:
    """Return the name of a study: its task and its model."""
    return f"{study.task} with {study.model}"


def overview_labels(studies: Sequence[Study]) -> list[str]:
    """Return every method once, in the order of the studies."""
    return list(dict.fromkeys(row.label for study in studies for row in study.results))


def overview_rows(studies: Sequence[Study]) -> list[tuple[str, list[Result | None]]]:
    """Return every method with its row in each study, or None where a study does not have it."""
    found = [{row.label: row for row in study.results} for study in studies]
    return [(label, [rows.get(label) for rows in found]) for label in overview_labels(studies)]


def overview_cells(studies: Sequence[Study]) -> list[list[str]]:
    """Return the table: the mean and what it says against the reference of the study."""
    return [[label, *map(_overview_text, rows)] for label, rows in overview_rows(studies)]


def _overview_text(row: Result | None) -> str:
    if row is None:
        return ""
    return f"{score_text(row.score)} {verdict_text(row)}" if row.records else "failed"


def overview_section(studies: Mapping[str, Study]) -> dict[str, Any]:
    """Return the overview as the template wants it.

    Args:
        studies: By the ids of their elements.
    """
    several_models = len({study.model for study in studies.values()}) > 1
    return {
        "columns": [
            {
                "id": name,
                "task": study.task,
                "model": study.model if several_models else "",
                "metric": metric_name(study.metric),
            }
            for name, study in studies.items()
        ],
        "rows": [
            {"label": label, "cells": [_overview_cell(row) for row in rows]}
            for label, rows in overview_rows(list(studies.values()))
        ],
    }


def _overview_cell(row: Result | None) -> dict[str, Any]:
    if row is None:
        return {"text": "", "sort": "", "range": "", "verdict": "", "kind": ""}
    return {
        "text": score_text(row.score),
        "sort": row.score.value if row.score else "",
        "range": range_text(row.score),
        "verdict": verdict_text(row),
        "kind": row.verdict.replace(" ", "-") if row.records else "failed",
    }


SETTINGS_COLUMNS = ("method", "settings of its own")


def settings_text(study: Study) -> str:
    """Return what all rows have alike: "All rows: steps=120, batch_size=8."; "" if that is nothing."""
    shared = _settings_text(_shared(study))
    whose = study.results[0].label if len(study.results) == 1 else "All rows"
    return f"{whose}: {shared}." if shared else ""


def settings_cells(study: Study) -> list[list[str]]:
    """Return the rows of the table: the method's name with its options and what else is its own."""
    shared = _shared(study)
    return [[row.label, _own(row, shared)] for row in study.results] if len(study.results) > 1 else []


def _shared(study: Study) -> Settings:
    first, *others = [row.settings for row in study.results]
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def _own(row: Result, shared: Settings) -> str:
    return _settings_text({name: value for name, value in row.settings.items() if name not in shared}) or "–"


def _settings_text(settings: Settings) -> str:
    return ", ".join(f"{name}={value_text(value)}" for name, value in settings.items() if value is not None)
