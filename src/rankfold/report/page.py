"""One HTML file that is complete: results, charts and every run, opened without a network."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rankfold.report.claims_section import claims_section
from rankfold.report.overview import heading
from rankfold.report.overview_section import overview_section
from rankfold.report.reading import READING, READING_TITLE
from rankfold.report.report import Report
from rankfold.report.sections import study_section
from rankfold.report.study import Study

_TEMPLATES = Path(__file__).parent / "templates"


def html_page(report: Report, *, version: str) -> str:
    """Return the page as one HTML text that loads nothing.

    Args:
        report: What to show.
        version: The version of rankfold that makes the page.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = {f"study-{number}": study for number, study in enumerate(report.studies, start=1)}
    shown = [study_section(name, study) for name, study in names.items()]
    has_charts = any(study["charts"] for study in shown)
    page = {
        "title": _title(report),
        "description": report.description,
        "version": version,
        "facts": _facts(report.studies),
        "missing": report.missing,
        "claims": claims_section(report.judgements) if report.judgements else None,
        "overview": overview_section(names) if len(names) > 1 else None,
        "studies": shown,
        "reading_title": READING_TITLE,
        "reading": READING,
        "has_charts": has_charts,
    }
    return environment.get_template("page.html.j2").render(
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


def _title(report: Report) -> str:
    if report.name and (report.judgements or len(report.studies) > 1):
        return report.name
    names = [heading(study) for study in report.studies]
    return names[0] if len(names) == 1 else f"{len(names)} comparisons"


def _facts(studies: Sequence[Study]) -> list[str]:
    records = [record for study in studies for record in study.records]
    failed = sum(record.status == "failed" for record in records)
    last = max(datetime.fromisoformat(record.created) for record in records).astimezone(UTC)
    trials = sum(len(study.labelled_trials()) for study in studies)
    runs = f"{len(records)} run" + "s" * (len(records) != 1) + (f", {failed} failed" if failed else "")
    machines = sorted({record.hardware.gpu or record.hardware.cpu for record in records})
    tuned = [f"{trials} trials of tuning"] if trials else []
    return [runs, *tuned, f"{last:%d %B %Y, %H:%M} UTC".lstrip("0"), *machines]
