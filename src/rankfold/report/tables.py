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
from rankfold.report.results import Result, Settings, file_bytes
from rankfold.report.study import Study
from rankfold.runs.record import RunRecord
from rankfold.runs.records import value_text

_LONG_LABEL = 20

_SHAPES: Mapping[str, str] = {
    "better": "▲ ",
    "worse": "▼ ",
    "equivalent": "= ",
    "not inferior": "≥ ",
    "not separated": "≈ ",
}


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
    rows = [_result_cells(study, result) for result in study.results]
    for name, value in study.baselines.items():
        baseline = [f"({baseline_name(name)})", f"{value:.3f}", "", "", "0"]
        rows.append([*baseline, *[""] * (len(columns(study)) - len(baseline))])
    return rows


def baseline_name(name: str) -> str:
    """Return the name of a baseline in a table: "majority" is "majority class"."""
    return {"majority": "majority class", "mean": "mean of the labels"}.get(name, name.replace("_", " "))


def seeds_text(result: Result) -> str:
    """Return how many runs ended well, and of how many if some failed: "3", "2 of 3", "0 of 1"."""
    count, failures = len(result.records), len(result.failures)
    return f"{count} of {count + failures}" if failures else str(count)


def verdict_text(result: Result) -> str:
    """Return the verdict on a result with a shape, "▲ better"; "failed" if no run ended well."""
    if not result.records:
        return "failed"
    shape = _SHAPES.get(result.verdict, "")
    return f"{shape}{result.verdict}" + (f": {result.why}" if result.why else "")


def _power_text(result: Result) -> str:
    """Return the smallest difference that could have been seen, " [could show 0.012]"; "" without any."""
    return "" if result.detectable is None else f" [could show {result.detectable:.3f}]"


def _result_cells(study: Study, result: Result) -> list[str]:
    trainable = result.mean(lambda run: run.parameters.trainable)
    size = result.mean(file_bytes)
    seconds = result.mean(lambda run: run.seconds.total)
    return [
        result.label,
        f"{score_text(result.score)} {range_text(result.score)}".strip(),
        difference_text(result.difference.interval) if result.difference else "",
        verdict_text(result) + _power_text(result),
        "–" if trainable is None else f"{trainable:,.0f}",
        "–" if size is None else bytes_text(size),
        "–" if seconds is None else seconds_text(seconds),
        *([_step(study, result)] if study.step_times else []),
        seeds_text(result),
        *([_trials(result)] if study.is_tuned else []),
    ]


def _step(study: Study, result: Result) -> str:
    """Return the time of a step beside the reference's, "×1.25 [1.20, 1.31]"."""
    if result is study.results[0]:
        return "×1.00"
    step = study.step_times.get(result.label)
    return f"×{step.ratio:.2f} [{step.low:.2f}, {step.high:.2f}]" if step else "–"


def _trials(result: Result) -> str:
    return str(result.tuning.trials) if result.tuning else "–"


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
    """Return the label of every method once, in the order of the studies."""
    return list(dict.fromkeys(result.label for study in studies for result in study.results))


def overview_rows(studies: Sequence[Study]) -> list[tuple[str, list[Result | None]]]:
    """Return every method with its result in each study, or None where a study does not have it."""
    results = [{result.label: result for result in study.results} for study in studies]
    return [(label, [labels.get(label) for labels in results]) for label in overview_labels(studies)]


def overview_cells(studies: Sequence[Study]) -> list[list[str]]:
    """Return the table: the mean and the verdict against the reference of the study."""
    return [[label, *map(_overview_text, results)] for label, results in overview_rows(studies)]


def _overview_text(result: Result | None) -> str:
    if result is None:
        return ""
    return f"{score_text(result.score)} {verdict_text(result)}" if result.records else "failed"


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
            {"label": label, "cells": [_overview_cell(result) for result in results]}
            for label, results in overview_rows(list(studies.values()))
        ],
    }


def _overview_cell(result: Result | None) -> dict[str, Any]:
    if result is None:
        return {"text": "", "sort": "", "range": "", "verdict": "", "kind": ""}
    return {
        "text": score_text(result.score),
        "sort": result.score.value if result.score else "",
        "range": range_text(result.score),
        "verdict": verdict_text(result),
        "kind": result.verdict.replace(" ", "-") if result.records else "failed",
    }


SETTINGS_COLUMNS = ("method", "own settings")


def settings_text(study: Study) -> str:
    """Return the settings that all methods share: "All methods: steps=120, batch_size=8."; "" if none."""
    text = _settings_text(_shared_settings(study))
    subject = study.results[0].label if len(study.results) == 1 else "All methods"
    return f"{subject}: {text}." if text else ""


def settings_cells(study: Study) -> list[list[str]]:
    """Return a row for each of several methods: its label and the settings that not all methods share."""
    common = _shared_settings(study)
    if len(study.results) == 1:
        return []
    return [[result.label, _own_settings(result, common)] for result in study.results]


def _shared_settings(study: Study) -> Settings:
    first, *rest = [result.settings for result in study.results]
    return {
        name: value
        for name, value in first.items()
        if all(name in settings and settings[name] == value for settings in rest)
    }


def _own_settings(result: Result, common: Settings) -> str:
    own = {name: value for name, value in result.settings.items() if name not in common}
    return _settings_text(own) or "–"


def _settings_text(settings: Settings) -> str:
    return ", ".join(f"{name}={value_text(value)}" for name, value in settings.items() if value is not None)
