"""One study as the template wants it: its table, its charts, how its rows came about, and every run."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rankfold.report.chart_style import Style, style_of
from rankfold.report.charts import study_figures
from rankfold.report.findings import budgets_text, headline
from rankfold.report.format import bytes_text, capital, listed, metric_name, seconds_text
from rankfold.report.results import Result
from rankfold.report.selection import (
    CHOSEN,
    TUNING_COLUMNS,
    Choice,
    choice_cells,
    choice_columns,
    choice_text,
    chosen_text,
    is_chosen,
    trial_text,
    tuning_text,
)
from rankfold.report.study import Study
from rankfold.report.tables import (
    SETTINGS_COLUMNS,
    baseline_name,
    cells,
    columns,
    heading,
    reason,
    settings_cells,
    settings_text,
)
from rankfold.runs.record import RunRecord

# Columns that hold words; all others hold numbers.
_WORDS = (0, 3)


def study_section(name: str, study: Study) -> dict[str, Any]:
    """Return a study as the template wants it.

    Args:
        name: The id of its element.
        study: What to show.
    """
    styles = {row.label: style_of(number) for number, row in enumerate(study.results)}
    charts = study_figures(study, styles)
    drawn = [row for row in study.results if row.records]
    return {
        "id": name,
        "heading": heading(study),
        "headline": headline(study),
        "columns": [
            {"name": head, "number": number not in _WORDS} for number, head in enumerate(columns(study))
        ],
        "rows": [
            *(
                _row(study, row, text, styles[row.label])
                for row, text in zip(study.results, cells(study), strict=False)
            ),
            *_baselines(study),
        ],
        "failures": [
            {
                "label": f"{row.label}, seed {run.training.seed}",
                "error": reason(run),
            }
            for row in study.results
            for run in row.failures
        ],
        "fine": _fine(study),
        "legend": [{"label": row.label, "style": styles[row.label]} for row in drawn],
        "charts": charts if drawn else [],
        "settings": {
            "explanation": settings_text(study),
            "columns": SETTINGS_COLUMNS,
            "rows": settings_cells(study),
        },
        "tuning": _tuning(study) if study.tuned else None,
        "choices": [_choice(choice) for choice in study.choices],
        "runs": [run_facts(label, run, study.metric) for label, run in study.labelled_runs()],
    }


def _tuning(study: Study) -> dict[str, Any]:
    return {
        "explanation": tuning_text(study.tuned),
        "columns": TUNING_COLUMNS,
        "rows": [
            {
                "label": each.label,
                "count": len(each.trials),
                "trials": [
                    {"text": trial_text(trial), "is_chosen": is_chosen(each, trial)} for trial in each.trials
                ],
                "chosen": chosen_text(each),
            }
            for each in study.tuned
        ],
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "explanation": choice_text(choice),
        "columns": choice_columns(choice),
        "numbers": range(1, 2 + len(choice.steps)),
        "rows": [
            # A name and its options, a score and its range: the second of them is set smaller.
            {
                "is_chosen": each.outcome == CHOSEN,
                "cells": [*(cell.partition(" ") for cell in text[:-1])],
                "outcome": text[-1],
            }
            for each, text in zip(choice.contenders, choice_cells(choice), strict=True)
        ],
    }


def _row(study: Study, row: Result, text: Sequence[str], style: Style) -> dict[str, Any]:
    verdict, value, difference = text[3], row.score and row.score.value, row.difference
    step = study.step_times.get(row.label)
    sizes = [
        row.mean(lambda run: run.parameters.trainable),
        row.mean(lambda run: run.bytes.weights_file),
        row.mean(lambda run: run.seconds.total),
        *([step.ratio if step else 1.0 if row is study.results[0] else None] if study.step_times else []),
        float(len(row.records)),
        *([row.tuning and float(row.tuning.trials)] if study.is_tuned else []),
    ]
    return {
        "label": row.label,
        "note": "",
        "kind": "" if row.records else "lost",
        "style": style if row.records else None,
        "cells": [
            _cell(text[1], value),
            _cell(text[2], difference and difference.interval.value),
            {**_cell(verdict, row.verdict, is_number=False), "kind": row.verdict.replace(" ", "-")},
            *(_cell(shown, size) for shown, size in zip(text[4:], sizes, strict=True)),
        ],
    }


def _baselines(study: Study) -> list[dict[str, Any]]:
    return [
        {
            "label": baseline_name(name),
            "note": "no training",
            "kind": "baseline",
            "style": None,
            "cells": [_cell(f"{value:.3f}", value), *(_cell("", None) for _ in columns(study)[2:])],
        }
        for name, value in study.baselines.items()
    ]


def _cell(text: str, sort: float | str | None, *, is_number: bool = True) -> dict[str, Any]:
    """Return a cell; the interval of a number is set smaller."""
    value, bracket, interval = text.partition(" [")
    return {
        "text": value,
        "sort": "" if sort is None else sort,
        "range": bracket.strip() + interval,
        "number": is_number,
        "kind": "",
    }


def _measured(study: Study) -> str:
    if not study.examples and any(row.records for row in study.results):
        return "No example was measured by all runs, so each is on examples of its own and none is compared."
    scored = f", answers scored by {study.scoring}" if study.scoring else ""
    measured = f"on the {study.examples:,} held-out examples of all runs"
    return f"{capital(metric_name(study.metric))} {measured}{scored}."


def _fine(study: Study) -> str:
    """Return the small print of one table: what was measured on how much, the head, what was left out."""
    heads = sorted({run.parameters.head for row in study.results for run in row.records})
    sentences = [
        _measured(study),
        f"The reference is {study.results[0].label}." if len(study.results) > 1 else "",
        budgets_text(study.results),
        f"The task head has {listed([f'{head:,}' for head in heads])} numbers."
        if heads and heads != [0]
        else "",
        "Steps were timed in turns with the reference's, so their ratio holds; the times of whole runs also "
        "say what else the machine did."
        if study.step_times
        else "",
        f"{study.repeats} earlier runs of the same method and seed were left out." if study.repeats else "",
    ]
    return " ".join(filter(None, sentences))


_HASH_DIGITS = 16

Facts = list[tuple[str, str]]


def run_facts(label: str, record: RunRecord, metric: str) -> dict[str, Any]:
    """Return a run as the template shows it.

    Args:
        label: The row it belongs to.
        record: The run.
        metric: The metric that is compared.
    """
    is_failed = record.status == "failed"
    result = (
        "failed" if is_failed else f"{metric_name(metric)} {record.metrics.get(metric, float('nan')):.3f}"
    )
    groups: dict[str, Facts] = {
        "Metrics": [(metric_name(name), f"{value:.4f}") for name, value in record.metrics.items()],
        "Method": [("name", record.method.name), *_plain(record.method.options)],
        "Training": _training(record),
        "Learning rates": [(group.name, f"{group.learning_rate:g}") for group in record.training.groups],
        "Reducer": _plain(record.reducer.options) if record.reducer else [],
        "Model": _model(record),
        "Data": _data(record),
        "Size": _sizes(record),
        "Time": _times(record),
        "Versions": _plain(record.versions),
        "Hardware": [(name, str(value)) for name, value in asdict(record.hardware).items() if value],
    }  # fmt: skip
    return {
        "title": f"{label}, seed {record.training.seed}",
        "failed": is_failed,
        "result": result,
        "error": record.error,
        "command": shlex.join(record.request.command()),
        "groups": [{"name": name, "facts": facts} for name, facts in groups.items() if facts],
        "config": json.dumps(record.method.config, indent=1, ensure_ascii=False)
        if record.method.config
        else "",
    }


def _training(record: RunRecord) -> Facts:
    values = asdict(record.training)
    del values["groups"], values["rates"]
    return _plain({**values, **record.training.rates})


def _model(record: RunRecord) -> Facts:
    model = record.model
    return [("name", model.name), ("source", model.source), ("sha256", model.sha256[:_HASH_DIGITS])]


def _data(record: RunRecord) -> Facts:
    task = record.task
    known = {"version": task.version, "scoring": task.scoring, "licence": task.licence}
    stated = [(name, str(value)) for name, value in known.items() if value is not None]
    rows = [(f"{split} rows", f"{count:,}") for split, count in record.data.rows.items()]
    digest = ("sha256", record.data.sha256[:_HASH_DIGITS])
    return [("task", task.name), ("source", record.data.source), *rows, *stated, digest]


def _sizes(record: RunRecord) -> Facts:
    if record.status == "failed":
        return []
    parameters = [(name, f"{count:,}") for name, count in asdict(record.parameters).items()]
    files = [(name.replace("_", " "), bytes_text(count)) for name, count in asdict(record.bytes).items()]
    return [*parameters, *files]


def _times(record: RunRecord) -> Facts:
    if record.status == "failed":
        return []
    spent = [(name.replace("_", " "), seconds_text(value)) for name, value in asdict(record.seconds).items()]
    step = ("a step", f"{record.seconds.step_median * 1000:.0f} ms")
    work = [("operations, estimated", f"{record.flops:.3g}")] if record.flops is not None else []
    return [*spent[:-1], step, ("peak memory", bytes_text(record.peak_memory_bytes)), *work]


def _plain(values: Mapping[str, Any]) -> Facts:
    return [
        (name.replace("_", " "), value if isinstance(value, str) else _short(value))
        for name, value in values.items()
    ]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
