"""The report as files: one HTML page that is complete, Markdown, and CSV of every run."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rankfold.bench.statistics.claims import JudgedClaim
from rankfold.errors import SpecError
from rankfold.files import write_into
from rankfold.report.claims import (
    CLAIM_COLUMNS,
    FINDING_COLUMNS,
    claim_cells,
    claims_section,
    claims_sentence,
    finding_cells,
)
from rankfold.report.findings import READING, READING_TITLE, budgets_text, headline
from rankfold.report.sections import study_section
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
    heading,
    overview_cells,
    overview_columns,
    overview_section,
    reason,
    settings_cells,
    settings_text,
)
from rankfold.runs.record import RunRecord

HTML_NAME, MARKDOWN_NAME, CSV_NAME = "report.html", "report.md", "records.csv"


def write_as_named(report: Report, path: Path, *, version: str) -> None:
    """Write the page, Markdown or CSV, by the ending of the name: `.html`, `.md` or `.csv`.

    The file appears complete or not at all.

    Raises:
        SpecError: If the name ends in something else, or it cannot be written there.
    """
    match path.suffix:
        case ".md":
            text = markdown(report)
        case ".csv":
            text = comma_separated(report)
        case ".html":
            text = html_page(report, version=version)
        case _:
            raise SpecError(f"'{path}' does not name a report; end it in .html, .md or .csv.")
    write_into(path.parent, path.name, text.encode())


def write_report(report: Report, folder: Path, *, version: str) -> Path:
    """Write Markdown, CSV and page into a folder, and return the page's path.

    Raises:
        SpecError: If they cannot be written there.
    """
    for name in (MARKDOWN_NAME, CSV_NAME, HTML_NAME):
        write_as_named(report, folder / name, version=version)
    return folder / HTML_NAME


def html_page(report: Report, *, version: str) -> str:
    """Return the page as one HTML text that loads nothing.

    Args:
        report: The report.
        version: The version of rankfold that makes the page.
    """
    names = {f"study-{number}": study for number, study in enumerate(report.studies, start=1)}
    sections = [study_section(name, study) for name, study in names.items()]
    has_charts = any(section["charts"] for section in sections)
    page = {
        "title": _title(report),
        "description": report.description,
        "version": version,
        "facts": _facts(report.studies),
        "missing": report.missing,
        "claims": claims_section(report.judgements) if report.judgements else None,
        "overview": overview_section(names) if len(names) > 1 else None,
        "studies": sections,
        "reading_title": READING_TITLE,
        "reading": READING,
        "has_charts": has_charts,
    }
    return render("page.html.j2", page, has_charts=has_charts)


def _title(report: Report) -> str:
    if report.name and (report.judgements or len(report.studies) > 1):
        return report.name
    names = [heading(study) for study in report.studies]
    return names[0] if len(names) == 1 else f"{len(names)} comparisons"


def _facts(studies: Sequence[Study]) -> list[str]:
    records = [record for study in studies for record in study.records]
    failures = sum(record.status == "failed" for record in records)
    last = max(datetime.fromisoformat(record.created) for record in records).astimezone(UTC)
    trials = sum(len(study.labelled_trials()) for study in studies)
    runs = f"{len(records)} run" + "s" * (len(records) != 1) + (f", {failures} failed" if failures else "")
    machines = sorted({record.hardware.gpu or record.hardware.cpu for record in records})
    tuning = [f"{trials} trials of tuning"] if trials else []
    return [runs, *tuning, f"{last:%d %B %Y, %H:%M} UTC".lstrip("0"), *machines]


def comma_separated(report: Report) -> str:
    """Return every run as CSV, failed ones and trials too; numbers are complete, not rounded."""
    rows = [
        _csv_row(study, label, run)
        for study in report.studies
        for label, run in [*study.labelled_runs(), *study.labelled_trials()]
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(study: Study, label: str, run: RunRecord) -> dict[str, object]:
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


_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, page: Mapping[str, Any], *, has_charts: bool) -> str:
    """Return a page as one HTML text.

    Args:
        template: The name of a file in `templates`.
        page: The values that it shows; texts of users are escaped.
        has_charts: Whether the library that draws charts is needed.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        page=page,
        style=_asset("page.css"),
        script=_asset("page.js"),
        vega=_vega() if has_charts else "",
    )


def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text("utf-8"))  # noqa: S704 (our own file, not a user's text)


@cache
def _vega() -> Markup:
    # `</script` inside a string of the library would end the element.
    script: str = cast("Any", vl_convert).javascript_bundle()
    return Markup(script.replace("</script", "<\\/script"))  # noqa: S704 (a library's code)


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
