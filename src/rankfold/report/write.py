"""A report as files: the page, its Markdown and its CSV."""

from pathlib import Path

from rankfold.errors import SpecError
from rankfold.files import write_into
from rankfold.report.markdown import markdown
from rankfold.report.page import html_page
from rankfold.report.report import Report
from rankfold.report.table import comma_separated

HTML_NAME, MARKDOWN_NAME, CSV_NAME = "report.html", "report.md", "records.csv"


def write_as_named(report: Report, path: Path, *, version: str) -> None:
    """Write the page, Markdown or CSV, as the name ends in `.html`, `.md` or `.csv`.

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
            raise SpecError(f"'{path}' is no name of a report; end it in .html, .md or .csv.")
    write_into(path.parent, path.name, text.encode())


def write_report(report: Report, folder: Path, *, version: str) -> Path:
    """Write Markdown, CSV and page into a folder, and return the page's path.

    Raises:
        SpecError: If they cannot be written there.
    """
    for name in (MARKDOWN_NAME, CSV_NAME, HTML_NAME):
        write_as_named(report, folder / name, version=version)
    return folder / HTML_NAME
