"""`rankfold bench`: what one does before and after many runs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankfold.cli.console import note, print_json, print_table
from rankfold.cli.estimates import estimate
from rankfold.cli.options import json_option

if TYPE_CHECKING:
    from rankfold.bench.diff import Change

_folder = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Estimate runs before they are made, and compare the records of those that were."""


command.add_command(estimate)


@command.command()
@click.argument("old", type=_folder)
@click.argument("new", type=_folder)
@json_option
@click.pass_context
def diff(context: click.Context, old: Path, new: Path, *, as_json: bool) -> None:
    """Say what has become worse from OLD to NEW, two folders of runs; exit code 1 if anything has.

    Runs that were asked for with the same words are compared on the same rows, seed by seed, with a paired
    interval; verdicts are corrected for their number. A run that finished in OLD and failed in NEW is worse.
    """
    from rankfold.bench.diff import compare_records  # --help can do without it
    from rankfold.bench.find import find_records

    found = compare_records(find_records(old), find_records(new))
    if as_json:
        print_json(asdict(found))
    else:
        print_table(
            ["method", "task", "seeds", "old", "new", "difference", "bytes", "step", "verdict"],
            [_cells(change) for change in found.changes],
            left=(0, 1, 8),
        )
    for change in found.changes:
        if change.why:
            note(f"{change.label} on {change.task}, {change.outcome}: {change.why}")
    for labels, where, other in ((found.only_old, "OLD", "NEW"), (found.only_new, "NEW", "OLD")):
        if labels:
            note(f"in {where} and not in {other}: {', '.join(labels)}")
    worse = sum(change.is_regression for change in found.changes)
    note(f"{worse} of {len(found.changes)} have become worse.")
    context.exit(1 if worse else 0)


def _cells(change: "Change") -> list[str]:
    from rankfold.report.words import difference_range, signed

    difference = change.difference
    return [
        change.label,
        f"{change.task} with {change.model}",
        str(len(change.seeds)),
        _number(change.old),
        _number(change.new),
        f"{signed(difference.interval.value)} {difference_range(difference.interval)}" if difference else "",
        _times(change.bytes_ratio),
        _times(change.step_ratio),
        change.outcome,
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"×{ratio:.2f}"
