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
    """Return claims, findings, results and how they came about as Markdown."""
    pieces = [f"# {_escaped(report.name)}", _escaped(report.description)] if report.name else []
    pieces += map(_escaped, report.missing)
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
        _escaped(claims_sentence(judgements)),
        _table(CLAIM_COLUMNS, [claim_cells(judgement) for judgement in judgements]),
        _table(["claim", *FINDING_COLUMNS], rows),
    ]


def _study(study: Study) -> list[str]:
    failures = [
        f"- {_escaped(f'{row.label}, seed {run.training.seed}, failed: {reason(run)}')}"
        for row in study.results
        for run in row.failures
    ]
    pieces = [
        f"# {_escaped(study.task)} with {_escaped(study.model)}",
        " ".join(map(_escaped, headline(study))),
        _table(columns(study), cells(study)),
        _escaped(budgets_text(study.results)),
        "\n".join(failures),
    ]
    pieces += ["## Settings", _escaped(settings_text(study))]
    if rows := settings_cells(study):
        pieces.append(_table(SETTINGS_COLUMNS, rows))
    if study.tuned:
        pieces += ["## How each was tuned", _escaped(tuning_text(study.tuned))]
        pieces.append(_table(TUNING_COLUMNS, [tuning_cells(each) for each in study.tuned]))
    for choice in study.choices:
        pieces += ["## How it was chosen", _escaped(choice_text(choice))]
        pieces.append(_table(choice_columns(choice), choice_cells(choice)))
    return pieces


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
