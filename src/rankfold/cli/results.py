"""The results of a comparison on the terminal, as a table or as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rankfold.bench.statistics.claims import JudgedClaim
from rankfold.bench.statistics.comparison import metric_intervals
from rankfold.cli.console import note, print_json, print_table
from rankfold.report.claims import CLAIM_COLUMNS, claim_cells, claim_summary, claims_sentence
from rankfold.report.findings import budgets_text, headline
from rankfold.report.format import range_text
from rankfold.report.results import Result
from rankfold.report.selection import Choice, choice_cells, choice_columns
from rankfold.report.study import Report, Study
from rankfold.report.tables import cells, columns, heading, settings_text
from rankfold.runs.record import Prediction
from rankfold.runs.remarks import class_figures

_MOST_CLASSES = 30


def metric_lines(
    metrics: Mapping[str, float], predictions: Sequence[Prediction], seed: int = 0
) -> list[tuple[str, str, str]]:
    """Return each metric of a run with its interval over the held-out rows, if these give it."""
    intervals = metric_intervals(predictions, metrics, seed=seed)
    return [
        (name, f"{value:.4f}", range_text(intervals[name]) if name in intervals else "")
        for name, value in metrics.items()
    ]


def class_lines(
    predictions: Sequence[Prediction], label_names: Sequence[str] | None
) -> list[tuple[str, ...]]:
    """Return precision, recall, F1 and rows of each class, the most frequent first; of many the first."""
    return [
        (
            item.name,
            *("–" if value is None else f"{value:.4f}" for value in (item.precision, item.recall, item.f1)),
            f"{item.rows:,}",
            f"{item.predicted:,}",
        )
        for item in class_figures(predictions, label_names)[:_MOST_CLASSES]
    ]


def print_report(report: Report) -> None:
    """Print the claims and one table for each model and task on stdout; findings and failures on stderr."""
    for study in report.studies:
        _print_study(study)
    if report.judgements:
        rows = [claim_summary(claim_cells(judgement)) for judgement in report.judgements]
        print_table(claim_summary(CLAIM_COLUMNS), rows, title="claims", left=range(len(CLAIM_COLUMNS)))
        note(claims_sentence(report.judgements))
    for sentence in report.missing:
        note(sentence)


def _print_study(study: Study) -> None:
    print_table(columns(study), cells(study), title=heading(study), left=(0, 3))
    for sentence in filter(None, [*headline(study), budgets_text(study.results), settings_text(study)]):
        note(sentence)
    for row in study.results:
        for run in row.failures:
            note(f"{row.label}, seed {run.training.seed}, failed: {run.error}")
    for choice in study.choices:
        heads = choice_columns(choice)
        print_table(heads, choice_cells(choice), title="how it was chosen", left=(0, len(heads) - 1))


def show_report(report: Report, *, as_json: bool) -> None:
    """Print a report on stdout, as JSON or as tables."""
    if as_json:
        print_json(report_as_json(report))
    else:
        print_report(report)


def report_as_json(report: Report) -> dict[str, Any]:
    """Return the claims and the studies with stable keys."""
    return {
        "claims": [_judgement_as_json(judgement) for judgement in report.judgements],
        "studies": [_study_as_json(study) for study in report.studies],
        "missing": list(report.missing),
    }


def _judgement_as_json(judgement: JudgedClaim) -> dict[str, Any]:
    return {
        **asdict(judgement.claim),
        "verdict": judgement.verdict,
        "findings": [asdict(finding) for finding in judgement.findings],
    }


def _study_as_json(study: Study) -> dict[str, Any]:
    return {
        "model": study.model,
        "task": study.task,
        "metric": study.metric,
        "examples": study.examples,
        "baselines": dict(study.baselines),
        "rows": [_row_as_json(row) for row in study.results],
        "choices": [_choice_as_json(choice) for choice in study.choices],
    }


def _choice_as_json(choice: Choice) -> dict[str, Any]:
    return {
        "budget": choice.budget,
        "steps": list(choice.steps),
        "compositions": [
            {
                "label": contender.label,
                "scores": [run.metrics.get(run.task.metric) for run in contender.runs],
                "outcome": contender.outcome,
            }
            for contender in choice.contenders
        ],
    }


def _row_as_json(row: Result) -> dict[str, Any]:
    return {
        "label": row.label,
        "seeds": [run.training.seed for run in row.records],
        "score": row.score and asdict(row.score),
        "difference": row.difference and asdict(row.difference.interval),
        "p_value": row.difference and row.difference.p_value,
        "verdict": row.verdict,
        "tuning": row.tuning and asdict(row.tuning),
        "trainable": row.mean(lambda run: run.parameters.trainable),
        "bytes": row.mean(lambda run: run.bytes.weights_file),
        "seconds": row.mean(lambda run: run.seconds.total),
        "failures": [{"seed": run.training.seed, "error": run.error} for run in row.failures],
    }
