"""`rankfold bench`: estimates before runs, step times, archives, and differences between records."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.compare import DEFAULT_OUT
from rankfold.cli.console import note, print_json, print_table, progress_screen, shown_notes
from rankfold.cli.options import SectionedCommand, json_option, merge_values, request_options, section
from rankfold.models.names import EMBEDDED_LIST
from rankfold.runs.check import check_method_name
from rankfold.runs.request import RunRequest

if TYPE_CHECKING:
    from rankfold.bench.estimates import Estimate
    from rankfold.bench.statistics.diff import Change


_folder = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Estimate runs before they are made, measure their steps, and compare records."""


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
    from rankfold.runs.records import check_nothing_lost, find_places, write_archive

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


_FIELDS = (
    *("model", "method", "options", "task", "data", "data_root", "kind", "freeze_head"),
    *("text_column", "pair_column", "label_column", "hold_out"),
    *("epochs", "steps", "batch_size", "max_length", "precision", "reducer"),
)
_HELP_TEXTS = {
    "model": f"{EMBEDDED_LIST}, a folder, a config.json, a GGUF file or a hub id.",
    "task": "A task with official splits: mrpc, boolq, ...; several as mrpc+sst2.",
    "data": "Data whose rows and classes are counted, if there is no such task.",
    "data_root": "Folder with one subfolder per task, whose rows and classes are counted.",
    "kind": "The kind of task, such as regression; the task's or the model's if left out.",
    "max_length": "Tokens of every row.  [default: 128; 256 for instructions]",
    "precision": "auto (bf16, as on a GPU), fp32 or bf16.  [default: auto]",
}

_EPILOG = """\b
Examples:
  rankfold bench estimate --model FacebookAI/roberta-large --task mrpc --method relayed_lora --epochs 20
  rankfold bench estimate --model meta-llama/Meta-Llama-3-8B --method effilora --rows 170420 --max-length 256
"""


@command.command(cls=SectionedCommand, epilog=_EPILOG)
@request_options(RunRequest, _FIELDS, help_texts=_HELP_TEXTS)
@section("Data")(
    "--rows", type=click.IntRange(min=1), help="Rows of the training split; the task's if left out."
)
@section("Where")(
    "--flops",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NUMBER",
    help="Operations in a second that the device reaches.  [default: 40 % of an A100's]",
)
@json_option
@click.pass_context
def estimate(
    context: click.Context,
    *,
    rows: int | None,
    flops: float | None,
    as_json: bool,
    **_options: Any,  # read off the context
) -> None:
    """Estimate a run: parameters, operations, memory and hours, without weights; data is only counted.

    A step is followed through the model's structure alone, which for the papers' models comes with rankfold.
    """
    request = RunRequest(**merge_values(context, RunRequest), out=Path())
    check_method_name(request.method)
    from rankfold.bench.estimates import Device, estimate, read_size  # seconds of imports

    device = None if flops is None else Device("the device", flops, f"{flops:.3g} FLOP/s")
    with shown_notes():
        classes = None
        if rows is None and _has_own_data(request):
            request, rows, classes = read_size(request)
        run_estimate = estimate(request, rows=rows, classes=classes, device=device)
    if as_json:
        print_json(run_estimate.to_dict())
        return
    task = f", {request.task}" if request.task else ""
    print_table(
        ["what", "estimate"],
        _estimate_cells(run_estimate),
        title=f"{run_estimate.method} on {run_estimate.model}{task}",
    )
    if run_estimate.left_out:
        note(f"not counted, as tokens go through a model without weights: {run_estimate.left_out}.")
    if run_estimate.fits is False:
        note(
            f"{run_estimate.device.name} has too little memory for this; lower --batch-size or --max-length."
        )
    note(
        f"every row has {run_estimate.length} tokens, evaluations are not counted, and "
        f"{run_estimate.device.name} reaches {run_estimate.device.assumption}."
    )


def _has_own_data(request: RunRequest) -> bool:
    """Whether data is named that is there; a task in no folder has the rows of its official splits."""
    root = request.data_root
    return request.data is not None or bool(root and request.task and (Path(root) / request.task).is_dir())


def _estimate_cells(run_estimate: "Estimate") -> list[tuple[str, str]]:
    from rankfold.report.format import bytes_text, seconds_text

    parameters, memory = run_estimate.parameters, run_estimate.memory
    numbers = [
        ("base model", run_estimate.base),
        ("stored", parameters.stored),
        ("trainable", parameters.trainable),
        ("active in a step", parameters.active),
        ("task head", parameters.head),
    ]
    parts = [
        ("weights", memory.weights),
        ("trained parameters", memory.trained),
        ("activations", memory.activations),
        ("gradients of a layer", memory.gradients),
    ]
    return [
        *((name, f"{count:,}") for name, count in numbers),
        ("learned bytes", bytes_text(run_estimate.stored_bytes)),
        ("steps", f"{run_estimate.steps:,}"),
        ("operations of a step", f"{run_estimate.step_flops:.3g}"),
        ("operations", f"{run_estimate.flops:.3g}"),
        (f"memory in {run_estimate.precision}", bytes_text(memory.total)),
        *((f"  {name}", bytes_text(count)) for name, count in parts),
        (f"time on {run_estimate.device.name}", seconds_text(run_estimate.hours * 3600)),
    ]
