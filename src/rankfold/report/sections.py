"""Template values of a study: its table, its charts, how settings were chosen, and every run."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rankfold.report.chart_style import Style, style_of
from rankfold.report.charts import study_figures
from rankfold.report.findings import budgets_text, headline
from rankfold.report.format import bytes_text, capital, join_names, metric_name, seconds_text
from rankfold.report.results import Result, file_bytes
from rankfold.report.selection import (
    CHOSEN,
    TUNING_COLUMNS,
    Choice,
    choice_cells,
    choice_columns,
    choice_text,
    chosen_text,
    is_chosen,
    point_text,
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
    """Return a study as values for the template.

    Args:
        name: The id of its element.
        study: The results.
    """
    styles = {result.label: style_of(index) for index, result in enumerate(study.results)}
    labels = [result.label for result in study.results if result.records]
    return {
        "id": name,
        "heading": heading(study),
        "headline": headline(study),
        "columns": [
            {"name": head, "number": number not in _WORDS} for number, head in enumerate(columns(study))
        ],
        "rows": [
            *(
                _row(study, result, text, styles[result.label])
                for result, text in zip(study.results, cells(study), strict=False)
            ),
            *_baselines(study),
        ],
        "failures": [
            {"label": f"{result.label}, seed {run.training.seed}", "error": reason(run)}
            for result in study.results
            for run in result.failures
        ],
        "fine": _fine_print(study),
        "pictures": study.pictures,
        "legend": [{"label": label, "style": styles[label]} for label in labels],
        "charts": study_figures(study, styles) if labels else [],
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
                "label": method.label,
                "count": len(method.points()),
                "trials": [
                    {"text": point_text(values, score), "is_chosen": is_chosen(method, values)}
                    for values, score in method.points()
                ],
                "chosen": chosen_text(method),
            }
            for method in study.tuned
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
                "is_chosen": contender.outcome == CHOSEN,
                "cells": [*(cell.partition(" ") for cell in text[:-1])],
                "outcome": text[-1],
            }
            for contender, text in zip(choice.contenders, choice_cells(choice), strict=True)
        ],
    }


def _row(study: Study, result: Result, text: Sequence[str], style: Style) -> dict[str, Any]:
    verdict, value, difference = text[3], result.score and result.score.value, result.difference
    step = study.step_times.get(result.label)
    sizes = [
        result.mean(lambda run: run.parameters.trainable),
        result.mean(file_bytes),
        result.mean(lambda run: run.seconds.total),
        *([step.ratio if step else 1.0 if result is study.results[0] else None] if study.step_times else []),
        float(len(result.records)),
        *([result.tuning and float(result.tuning.trials)] if study.is_tuned else []),
    ]
    return {
        "label": result.label,
        "note": "",
        "kind": "" if result.records else "lost",
        "style": style if result.records else None,
        "cells": [
            _cell(text[1], value),
            _cell(text[2], difference and difference.interval.value),
            {**_cell(verdict, result.verdict, is_number=False), "kind": result.verdict.replace(" ", "-")},
            *(_cell(words, size) for words, size in zip(text[4:], sizes, strict=True)),
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
    """Return a cell with its interval apart, which the page writes smaller."""
    value, bracket, interval = text.partition(" [")
    return {
        "text": value,
        "sort": "" if sort is None else sort,
        "range": bracket.strip() + interval,
        "number": is_number,
        "kind": "",
    }


def _metric_sentence(study: Study) -> str:
    if not study.examples and any(result.records for result in study.results):
        return "The runs share no held-out example: each is measured on its own, and none is compared."
    scoring = f", answers scored by {study.scoring}" if study.scoring else ""
    examples = f"on the {study.examples:,} held-out examples that all runs share"
    return f"{capital(metric_name(study.metric))} {examples}{scoring}."


def _fine_print(study: Study) -> str:
    """Return the notes under a table: metric and examples, reference, budgets, head, step times, repeats."""
    heads = sorted({run.parameters.head for result in study.results for run in result.records})
    sentences = [
        _metric_sentence(study),
        f"The reference is {study.results[0].label}." if len(study.results) > 1 else "",
        budgets_text(study.results),
        f"The task head has {join_names([f'{head:,}' for head in heads])} parameters."
        if heads and heads != [0]
        else "",
        "Steps were timed in turns with those of the reference, so their ratio is reliable. Times of whole "
        "runs also depend on the other work of the machine."
        if study.step_times
        else "",
        f"{study.repeats} earlier runs of the same method and seed are left out." if study.repeats else "",
    ]
    return " ".join(filter(None, sentences))


_HASH_DIGITS = 16

Facts = list[tuple[str, str]]


def run_facts(label: str, record: RunRecord, metric: str) -> dict[str, Any]:
    """Return a run as values for the template: how to repeat it, its cost and its metrics.

    Args:
        label: The label of its result.
        record: The run.
        metric: The metric that is compared.
    """
    is_failed = record.status == "failed"
    outcome = (
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
        "result": outcome,
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
    optional = {"version": task.version, "scoring": task.scoring, "licence": task.licence}
    details = [(name, str(value)) for name, value in optional.items() if value is not None]
    rows = [(f"{split} rows", f"{count:,}") for split, count in record.data.rows.items()]
    digest = ("sha256", record.data.sha256[:_HASH_DIGITS])
    return [("task", task.name), ("source", record.data.source), *rows, *details, digest]


def _sizes(record: RunRecord) -> Facts:
    if record.status == "failed":
        return []
    parameters = [(name, f"{count:,}") for name, count in asdict(record.parameters).items()]
    files = [(name.replace("_", " "), bytes_text(count)) for name, count in asdict(record.bytes).items()]
    return [*parameters, *files]


def _times(record: RunRecord) -> Facts:
    if record.status == "failed":
        return []
    seconds = [
        (name.replace("_", " "), seconds_text(value)) for name, value in asdict(record.seconds).items()
    ]
    step = ("a step", f"{record.seconds.step_median * 1000:.0f} ms")
    work = [("operations, estimated", f"{record.flops:.3g}")] if record.flops is not None else []
    return [*seconds[:-1], step, ("peak memory", bytes_text(record.peak_memory_bytes)), *work]


def _plain(values: Mapping[str, Any]) -> Facts:
    return [
        (name.replace("_", " "), value if isinstance(value, str) else _short(value))
        for name, value in values.items()
    ]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
