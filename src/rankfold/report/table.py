"""The results as plain rows: for the terminal, for Markdown and for CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict

from rankfold.bench.record import RunRecord
from rankfold.report.choice_table import choice_cells, choice_columns, choice_text
from rankfold.report.study import Row, Study
from rankfold.report.words import (
    bytes_text,
    difference_range,
    headline,
    metric_name,
    range_text,
    score_text,
    seconds_text,
    seeds_text,
    signed,
)


def columns(study: Study) -> list[str]:
    """Return the headings of the results table."""
    first = f"difference to {study.rows[0].label}"
    return [
        "method",
        f"{metric_name(study.metric)} (95 %)",
        first,
        "verdict",
        "trainable",
        "on disk",
        "time",
        "seeds",
    ]


def cells(study: Study) -> list[list[str]]:
    """Return the results table: one row per method, then one per baseline."""
    found = [_cells(row) for row in study.rows]
    for name, value in study.baselines.items():
        found.append([f"({baseline_name(name)})", f"{value:.3f}", "", "", "0", "", "", ""])
    return found


def baseline_name(name: str) -> str:
    """Return a baseline as it is written in a table: "majority" is "majority class"."""
    return {"majority": "majority class", "mean": "mean of the labels"}.get(name, name.replace("_", " "))


def _cells(row: Row) -> list[str]:
    difference = ""
    if row.difference:
        interval = row.difference.interval
        difference = f"{signed(interval.value)} {difference_range(interval)}"
    trainable = row.mean(lambda run: run.parameters.trainable)
    size = row.mean(lambda run: run.bytes.weights_file)
    seconds = row.mean(lambda run: run.seconds.total)
    return [
        row.label,
        f"{score_text(row.score)} {range_text(row.score)}".strip(),
        difference,
        row.verdict if row.records else "failed",
        "–" if trainable is None else f"{trainable:,.0f}",
        "–" if size is None else bytes_text(size),
        "–" if seconds is None else seconds_text(seconds),
        seeds_text(row),
    ]


def markdown(studies: Sequence[Study]) -> str:
    """Return the findings and the results tables as Markdown."""
    pieces: list[str] = []
    for study in studies:
        failures = [
            f"- {_escaped(f'{row.label}, seed {run.training.seed}, failed: {reason(run)}')}"
            for row in study.rows
            for run in row.failures
        ]
        found = " ".join(map(_escaped, headline(study)))
        title = f"# {_escaped(study.task)} with {_escaped(study.model)}"
        pieces += [title, found, _table(columns(study), cells(study))]
        pieces += ["\n".join(failures)] if failures else []
        for choice in study.choices:
            pieces += ["## How it was chosen", _escaped(choice_text(choice))]
            pieces.append(_table(choice_columns(choice), choice_cells(choice)))
    return "\n\n".join(pieces) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in (heads, *rows)]
    lines.insert(1, "|" + " --- |" * len(heads))
    return "\n".join(lines)


def _escaped(text: str) -> str:
    # Markdown lets HTML through, and a bar or a line break would end the cell.
    for plain, safe in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "&#124;"),
        ("`", "&#96;"),
        ("[", "\\["),
    ):
        text = text.replace(plain, safe)
    return " ".join(text.split())


def reason(record: RunRecord) -> str:
    """Return why a run failed, in one line."""
    return " ".join((record.error or "no reason was recorded").split())


def comma_separated(studies: Sequence[Study]) -> str:
    """Return every run as CSV, failed ones too; numbers are complete, not rounded."""
    rows = [_flat(study, label, run) for study in studies for label, run in study.labelled_runs()]
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
        "seed": run.training.seed,
        "status": run.status,
        "error": run.error,
        "metric": study.metric,
        "value": run.metrics.get(study.metric),
        "learning_rate": run.training.learning_rate,
        "epochs": run.training.epochs,
        "steps": run.training.steps,
        **{f"{name}_{key}": value for name, part in parts.items() for key, value in asdict(part).items()},
        "peak_memory_bytes": run.peak_memory_bytes,
        "model_sha256": run.model.sha256,
        "data_sha256": run.data.sha256,
        "created": run.created,
    }
