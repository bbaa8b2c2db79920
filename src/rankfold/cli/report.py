"""`rankfold report`: the comparison page from runs that are there already."""

from pathlib import Path

import click

from rankfold import __version__
from rankfold.cli.console import note, print_json
from rankfold.cli.options import json_option
from rankfold.errors import OutputExistsError, SpecError


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page, or Markdown or CSV if it ends in .md or .csv.  [default: report.html in DIR, and for "
    "several runs report.md and records.csv]",
)
@click.option(
    "--reference",
    metavar="LABEL",
    help="The reference; by default the suite's first variant, or that of the earliest run.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file that --out names.")
@json_option
def command(folder: Path, *, out: Path | None, reference: str | None, overwrite: bool, as_json: bool) -> None:
    """Write the page of one run, or compare the runs under DIR.

    The folder of one run gets a page with its result, learning curve, mistakes, cost and request. Any other
    folder holds the run.json files of `rankfold train` or `rankfold compare` at some depth: they are compared
    as page, Markdown and CSV, and if they are of a suite with claims, each claim gets a verdict.
    """
    from rankfold.cli.results import show_report  # --help can do without them
    from rankfold.report.study import make_report
    from rankfold.report.write import HTML_NAME, write_as_named, write_report
    from rankfold.runs.record import NAME
    from rankfold.runs.records import find_records

    if overwrite and out is None:
        raise SpecError("--overwrite is given without --out, whose file it would replace; leave it out.")
    if out is not None and out.exists() and not overwrite:
        raise OutputExistsError(f"'{out}' exists; choose another file, or add --overwrite to replace it.")
    if (folder / NAME).is_file() and (out is None or out.suffix == ".html"):
        if reference is not None:
            raise SpecError(f"--reference is for several runs, and '{folder}' is one; leave it out.")
        _report_run(folder, out or folder / HTML_NAME, as_json=as_json)
        return
    report = make_report(find_records(folder), folder, reference=reference)
    if out is None:
        page = write_report(report, folder, version=__version__)
    else:
        page = out
        write_as_named(report, page, version=__version__)
    show_report(report, as_json=as_json)
    note(f"report: {page}")


def _report_run(folder: Path, page: Path, *, as_json: bool) -> None:
    """Write the page of one run."""
    from rankfold.files import write_into
    from rankfold.report.run_page import headline, run_page
    from rankfold.runs.examples import read_examples
    from rankfold.runs.record import RunRecord

    record = RunRecord.read(folder)
    write_into(page.parent, page.name, run_page(record, read_examples(folder), version=__version__).encode())
    if as_json:
        print_json({"page": str(page), "record": record.to_dict()})
    else:
        click.echo(headline(record))
    note(f"report: {page}")
