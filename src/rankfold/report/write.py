"""A report as files: the page, its Markdown and its CSV."""

from pathlib import Path

from rankfold.errors import SpecError
from rankfold.files import write_whole
from rankfold.report.markdown import markdown
from rankfold.report.page import html_page
from rankfold.report.report import Report
from rankfold.report.table import comma_separated

HTML_NAME, MARKDOWN_NAME, CSV_NAME = "report.html", "report.md", "records.csv"


def write_html(report: Report, path: Path, *, version: str) -> None:
    """Write the page; it appears complete or not at all.

    Raises:
        SpecError: If it cannot be written there.
    """
    _write(path, html_page(report, version=version))


def write_report(report: Report, folder: Path, *, version: str) -> Path:
    """Write page, Markdown and CSV into a folder, and return the page's path.

    Raises:
        SpecError: If they cannot be written there.
    """
    _write(folder / MARKDOWN_NAME, markdown(report))
    _write(folder / CSV_NAME, comma_separated(report))
    write_html(report, folder / HTML_NAME, version=version)
    return folder / HTML_NAME


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise SpecError(f"cannot write '{path}' ({error.strerror}); choose another place.") from error
