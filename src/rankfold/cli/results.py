"""The results of a comparison on the terminal, as a table or as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rankfold.cli.console import note, print_table
from rankfold.report.choice import Choice
from rankfold.report.choice_table import choice_cells, choice_columns
from rankfold.report.study import Row, Study
from rankfold.report.table import cells, columns
from rankfold.report.words import headline


def print_studies(studies: Sequence[Study]) -> None:
    """Print one table for each model and task on stdout; findings and failures on stderr."""
    for study in studies:
        print_table(columns(study), cells(study), title=f"{study.task} with {study.model}", left=(0, 3))
        for sentence in headline(study):
            note(sentence)
        for row in study.rows:
            for run in row.failures:
                note(f"{row.label}, seed {run.training.seed}, failed: {run.error}")
        for choice in study.choices:
            heads = choice_columns(choice)
            rows = choice_cells(choice)
            print_table(heads, rows, title="how it was chosen", left=(0, len(heads) - 1))


def studies_as_json(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Return the studies with stable keys."""
    return [
        {
            "model": study.model,
            "task": study.task,
            "metric": study.metric,
            "examples": study.examples,
            "baselines": dict(study.baselines),
            "rows": [_row_as_json(row) for row in study.rows],
            "choices": [_choice_as_json(choice) for choice in study.choices],
        }
        for study in studies
    ]


def _choice_as_json(choice: Choice) -> dict[str, Any]:
    return {
        "budget": choice.budget,
        "steps": list(choice.steps),
        "compositions": [
            {
                "label": each.label,
                "scores": [run.metrics.get(run.task.metric) for run in each.runs],
                "outcome": each.outcome,
            }
            for each in choice.contenders
        ],
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "seeds": [run.training.seed for run in row.records],
        "score": row.score and asdict(row.score),
        "difference": row.difference and asdict(row.difference.interval),
        "p_value": row.difference and row.difference.p_value,
        "verdict": row.verdict,
        "trainable": row.mean(lambda run: run.parameters.trainable),
        "bytes": row.mean(lambda run: run.bytes.weights_file),
        "seconds": row.mean(lambda run: run.seconds.total),
        "failures": [{"seed": run.training.seed, "error": run.error} for run in row.failures],
    }
