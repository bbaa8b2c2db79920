"""The results as plain rows: for the terminal, for Markdown, for the page and for CSV."""

import csv
import io
import json
from dataclasses import asdict

from rankfold.report.report import Report
from rankfold.report.rows import Row
from rankfold.report.study import Study
from rankfold.report.words import (
    bytes_text,
    difference_text,
    metric_name,
    range_text,
    score_text,
    seconds_text,
    seeds_text,
    verdict_text,
)
from rankfold.runs.record import RunRecord

_LONG_LABEL = 20


def columns(study: Study) -> list[str]:
    """Return the headings of the results table."""
    reference = study.rows[0].label
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
    found = [_cells(study, row) for row in study.rows]
    for name, value in study.baselines.items():
        baseline = [f"({baseline_name(name)})", f"{value:.3f}", "", "", "0"]
        found.append([*baseline, *[""] * (len(columns(study)) - len(baseline))])
    return found


def baseline_name(name: str) -> str:
    """Return a baseline as it is written in a table: "majority" is "majority class"."""
    return {"majority": "majority class", "mean": "mean of the labels"}.get(name, name.replace("_", " "))


def _cells(study: Study, row: Row) -> list[str]:
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


def _step(study: Study, row: Row) -> str:
    """Return the time of a step beside the reference's, "×1.25 [1.20, 1.31]"."""
    if row is study.rows[0]:
        return "×1.00"
    found = study.step_times.get(row.label)
    return f"×{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "–"


def _trials(row: Row) -> str:
    return str(row.tuning.trials) if row.tuning else "–"


def reason(record: RunRecord) -> str:
    """Return why a run failed, in one line."""
    return " ".join((record.error or "no reason was recorded").split())


def comma_separated(report: Report) -> str:
    """Return every run as CSV, failed ones and trials too; numbers are complete, not rounded."""
    rows = [
        _flat(study, label, run)
        for study in report.studies
        for label, run in [*study.labelled_runs(), *study.labelled_trials()]
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(study: Study, label: str, run: RunRecord) -> dict[str, object]:
    parts = {"parameters": run.parameters, "bytes": run.bytes, "seconds": run.seconds}
    return {
        "model": study.model,
        "task": study.task,
        "label": label,
        "method": run.method.name,
        "rung": run.fit and run.fit.rung,
        "trial": run.tuning and run.tuning.trial,
        "tuned": json.dumps(run.tuning.values) if run.tuning else None,
        "seed": run.training.seed,
        "status": run.status,
        "error": run.error,
        "metric": study.metric,
        "value": run.metrics.get(study.metric),
        "learning_rate": run.training.learning_rate,
        "epochs": run.training.epochs,
        "steps": run.training.steps,
        **{f"{name}_{key}": value for name, part in parts.items() for key, value in asdict(part).items()},
        "flops": run.flops,
        "peak_memory_bytes": run.peak_memory_bytes,
        "model_sha256": run.model.sha256,
        "data_sha256": run.data.sha256,
        "created": run.created,
    }
