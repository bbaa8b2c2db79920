"""The report as files: one HTML page that is complete, Markdown, and CSV of every run."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rankfold.errors import SpecError
from rankfold.files import write_into
from rankfold.report.claims import claims_section
from rankfold.report.findings import READING, READING_TITLE
from rankfold.report.markdown import markdown
from rankfold.report.page import render
from rankfold.report.sections import study_section
from rankfold.report.study import Report, Study
from rankfold.report.tables import heading, overview_section
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
