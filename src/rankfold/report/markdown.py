"""The report as Markdown."""

from collections.abc import Sequence

from rankfold.bench.statistics.claims import JudgedClaim
from rankfold.report.claims import (
    CLAIM_COLUMNS,
    FINDING_COLUMNS,
    claim_cells,
    claims_sentence,
    finding_cells,
)
from rankfold.report.findings import READING, READING_TITLE, budgets_text, headline
from rankfold.report.selection import (
    TUNING_COLUMNS,
    choice_cells,
    choice_columns,
    choice_text,
    tuning_cells,
    tuning_text,
)
from rankfold.report.study import Report, Study
from rankfold.report.tables import (
    SETTINGS_COLUMNS,
    cells,
    columns,
    overview_cells,
    overview_columns,
    reason,
    settings_cells,
    settings_text,
)


def markdown(report: Report) -> str:
    """Return the report as Markdown: claims, overview, and each study with its settings."""
    pieces = [f"# {_escape(report.name)}", _escape(report.description)] if report.name else []
    pieces += map(_escape, report.missing)
    pieces += _claims(report.judgements) if report.judgements else []
    if len(report.studies) > 1:
        pieces += ["# Overview", _table(overview_columns(report.studies), overview_cells(report.studies))]
    for study in report.studies:
        pieces += _study(study)
    pieces += [f"# {READING_TITLE}", *READING]
    return "\n\n".join(filter(None, pieces)) + "\n"


def _claims(judgements: Sequence[JudgedClaim]) -> list[str]:
    rows = [[judgement.claim.id, *cells] for judgement in judgements for cells in finding_cells(judgement)]
    return [
        "# Claims",
        _escape(claims_sentence(judgements)),
        _table(CLAIM_COLUMNS, [claim_cells(judgement) for judgement in judgements]),
        _table(["claim", *FINDING_COLUMNS], rows),
    ]


def _study(study: Study) -> list[str]:
    failures = [
        f"- {_escape(f'{result.label}, seed {run.training.seed}, failed: {reason(run)}')}"
        for result in study.results
        for run in result.failures
    ]
    pieces = [
        f"# {_escape(study.task)} with {_escape(study.model)}",
        " ".join(map(_escape, headline(study))),
        _table(columns(study), cells(study)),
        _escape(budgets_text(study.results)),
        "\n".join(failures),
    ]
    pieces += ["## Settings", _escape(settings_text(study))]
    if rows := settings_cells(study):
        pieces.append(_table(SETTINGS_COLUMNS, rows))
    if study.tuned:
        pieces += ["## How the methods were tuned", _escape(tuning_text(study.tuned))]
        pieces.append(_table(TUNING_COLUMNS, [tuning_cells(method) for method in study.tuned]))
    for choice in study.choices:
        pieces += ["## How the composition was chosen", _escape(choice_text(choice))]
        pieces.append(_table(choice_columns(choice), choice_cells(choice)))
    return pieces


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(_escape, row)) + " |" for row in (heads, *rows)]
    lines.insert(1, "|" + " --- |" * len(heads))
    return "\n".join(lines)


def _escape(text: str) -> str:
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
