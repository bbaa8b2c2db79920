"""`rankfold bench`: estimates before runs, step times, archives, and differences between records."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankfold.cli.compare import DEFAULT_OUT
from rankfold.cli.console import note, print_json, print_table, progress_screen
from rankfold.cli.estimates import estimate
from rankfold.cli.options import json_option

if TYPE_CHECKING:
    from rankfold.bench.statistics.diff import Change

_folder = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Estimate runs before they are made, measure their steps, and compare records."""


command.add_command(estimate)


@command.command()
@click.argument("old", type=_folder)
@click.argument("new", type=_folder)
@json_option
@click.pass_context
def diff(context: click.Context, old: Path, new: Path, *, as_json: bool) -> None:
    """List the regressions from OLD to NEW, two folders of runs; exit code 1 if there are any.

    Runs with the same request are compared on the same rows, seed by seed, with a paired interval; verdicts
    are corrected for their number. A run that finished in OLD and failed in NEW is a regression.
    """
    from rankfold.bench.statistics.diff import compare_records  # --help can do without it
    from rankfold.runs.records import find_records

    comparison = compare_records(find_records(old), find_records(new))
    if as_json:
        print_json(asdict(comparison))
    else:
        print_table(
            ["method", "task", "seeds", "old", "new", "difference", "bytes", "step", "verdict"],
            [_cells(change) for change in comparison.changes],
            left=(0, 1, 8),
        )
    for change in comparison.changes:
        if change.why:
            note(f"{change.label} on {change.task}, {change.outcome}: {change.why}")
    for labels, folder, other_folder in (
        (comparison.only_old, "OLD", "NEW"),
        (comparison.only_new, "NEW", "OLD"),
    ):
        if labels:
            note(f"in {folder} and not in {other_folder}: {', '.join(labels)}")
    worse = sum(change.is_regression for change in comparison.changes)
    note(f"{worse} of {len(comparison.changes)} have become worse.")
    context.exit(1 if worse else 0)


@command.command()
@click.argument("folder", type=_folder)
@click.option("--out", type=_folder, help="Where to write it.  [default: FOLDER]")
@click.option("--overwrite", is_flag=True, help="Replace an archive of other runs in --out.")
def archive(folder: Path, out: Path | None, *, overwrite: bool) -> None:
    """Write the records of all runs in FOLDER into one small file, next to the suite and its step times.

    Commands that take a folder of runs read this file too, and a suite can continue from it. Adapters are
    not copied.
    """
    from rankfold.bench.step_times import read_step_times, write_step_times
    from rankfold.bench.suites.saved_suite import load_suite, save_suite
    from rankfold.runs.archive import check_nothing_lost, write_archive
    from rankfold.runs.records import find_places

    records = find_places(folder)
    target = out or folder
    if not overwrite:
        check_nothing_lost(records, target)
    file = write_archive(records, target)
    if (suite := load_suite(folder)) is not None:
        save_suite(suite, target)
    if times := read_step_times(folder):
        write_step_times(times, target)
    note(f"{len(records)} records written and read back in '{file}', {file.stat().st_size:,} bytes.")


@command.command()
@click.option("--suite", required=True, metavar="NAME|FILE", help="A packaged suite, or a TOML file.")
@click.option("--profile", help="A profile of the suite; its first if left out.")
@click.option("--out", type=_folder, help="Folder of the suite's runs.  [default: runs/<suite>]")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Turns per variant.")
@click.option("--data-root", envvar="RANKFOLD_DATA", help="Folder with one subfolder per task.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@json_option
def speed(
    *,
    suite: str,
    profile: str | None,
    out: Path | None,
    rounds: int,
    data_root: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the training step of every variant of a suite in turns with the reference's.

    Times of separate runs depend on the load of the machine; these ratios do not. They are written to
    speed.json beside the runs, and the report shows them. Variants that are in it are not measured again,
    unless --rounds is larger than before.
    """
    from dataclasses import replace

    import torch

    from rankfold.bench.suites.speed import measure_speed
    from rankfold.bench.suites.suite_file import read_suite

    plan = read_suite(suite, profile)
    plan = replace(plan, base={**plan.base, **({"data_root": data_root} if data_root else {})})
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_screen() as new_bar:
        times = measure_speed(plan, out or DEFAULT_OUT / plan.name, rounds=rounds, progress=new_bar())
    if as_json:
        print_json([asdict(time) for time in times])
        return
    print_table(
        ["row", "task", "step vs. reference", "reference"],
        [
            [
                time.label,
                time.task,
                f"×{time.ratio:.2f} [{time.low:.2f}, {time.high:.2f}]",
                time.reference,
            ]
            for time in times
        ],
        left=(0, 1, 3),
    )


def _cells(change: "Change") -> list[str]:
    from rankfold.report.format import difference_text

    difference = change.difference
    return [
        change.label,
        f"{change.task} with {change.model}",
        str(len(change.seeds)),
        _number(change.old),
        _number(change.new),
        difference_text(difference.interval) if difference else "",
        _times(change.bytes_ratio),
        _times(change.step_ratio),
        change.outcome,
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"×{ratio:.2f}"
