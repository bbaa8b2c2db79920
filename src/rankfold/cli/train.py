"""`rankfold train`: fine-tune a model with one method."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rankfold.cli.console import note, print_json, print_table, progress_screen
from rankfold.cli.data import check_mixture, column_options, mixture_option, scoring_option, source_options
from rankfold.cli.notes import shown_notes
from rankfold.cli.options import json_option, parse_settings
from rankfold.cli.rates import rate_options
from rankfold.cli.sections import SectionedCommand, section

if TYPE_CHECKING:
    from rankfold.runs.record import RunRecord
    from rankfold.runs.request import RunRequest

_what = section("What to train")
_DATA = "Data"
_data = section(_DATA)
_how = section("How to train")
_where = section("Where")

# With these alone a run goes on as it began.
_ALONE = {"resume", "out", "as_json", "is_dry_run"}

_EPILOG = """\b
Examples:
  rankfold train --model minilm --task bbc_news --method relayed_lora --set r=8 --set k=8 --out runs/relayed
  rankfold train --model minilm --task mrpc --data-root data --method peft:lora --out runs/mrpc
  rankfold train --model smollm2 --data rows.jsonl --method lora --steps 200 --out runs/answers
  rankfold train --resume --out runs/answers
"""


@click.command(cls=SectionedCommand, epilog=_EPILOG)
@_what("--model", help="minilm, smollm2, a model folder, a GGUF file or a hub id.")
@_what("--method", help="A method of `rankfold methods`, or one of PEFT's, such as peft:lora.")
@_what(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the method; may be repeated."
)
@_what("--out", required=True, type=click.Path(path_type=Path), help="Folder to write; it must not exist.")
@_what("--overwrite", is_flag=True, help="Replace the run in --out, once this one has succeeded.")
@_what(
    "--resume",
    is_flag=True,
    help="Go on with a run that was stopped, if there is one; with --out alone, as it began.",
)
@_what("--freeze-head", is_flag=True, help="Leave a new classification head as the seed drew it.")
@source_options(_DATA)
@_data("--kind", help="The kind of task, such as regression; inferred from the data if left out.")
@column_options(_DATA)
@_data("--train-rows", type=int, help="Train on this many rows, drawn with a fixed seed.")
@_data("--eval-rows", type=int, help="Evaluate on this many rows, drawn with a fixed seed.")
@_data(
    "--hold-out",
    is_flag=True,
    help="Evaluate on a tenth of the training split, not trained on, instead of on the validation split.",
)
@mixture_option(_DATA, default="equal")
@scoring_option(_DATA)
@_data("--max-length", type=int, help="Most tokens of a row.  [default: 128; 256 for instructions]")
@_how("--epochs", type=float, help="Passes over the training split.  [default: 3]")
@_how("--steps", type=int, help="Updates, instead of epochs.")
@_how("--batch-size", type=int, default=16, show_default=True, help="Rows of an update.")
@_how("--learning-rate", type=float, help="Highest learning rate; the method's own if left out.")
@_how(
    "--scheduler",
    default="linear",
    show_default=True,
    help="Learning rate after the warm-up: linear, cosine, constant, ...",
)
@_how(
    "--warmup",
    type=float,
    default=0.06,
    show_default=True,
    help="Share of the steps in which the rate rises.",
)
@_how("--weight-decay", type=float, default=0.0, show_default=True, help="Weight decay of AdamW.")
@_how("--seed", type=int, default=0, show_default=True, help="Seed of head, adapter, data order and dropout.")
@_how("--precision", default="auto", show_default=True, help="auto, fp32 or bf16.")
@_how(
    "--validate",
    default="epochs",
    show_default=True,
    help="When held-out rows are measured: epochs (before, after every epoch and at the end) or end.",
)
@rate_options(section("Learning rates by role"))
@_where(
    "--checkpoint-every",
    type=int,
    default=200,
    show_default=True,
    metavar="STEPS",
    help="Save what --resume needs, so often; 0 never.",
)
@_how("--reducer", "has_reducer", is_flag=True, help="Train only some layers in each step, by importance.")
@_how(
    "--reducer-set",
    "reducer_settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the Reducer, such as active_fraction=0.5, which turns it on; may be repeated.",
)
@_where("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@_where("--threads", type=int, help="CPU threads.")
@click.option(
    "--dry-run", "is_dry_run", is_flag=True, help="Build and count everything, train and write nothing."
)
@json_option
def command(
    *,
    settings: Sequence[str],
    has_reducer: bool,
    reducer_settings: Sequence[str],
    is_dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune a model with one method, and write the adapter with its record and curve."""
    from rankfold.runs.resume import is_unfinished
    from rankfold.runs.run import dry_run, run

    reducer = parse_settings(reducer_settings) if has_reducer or reducer_settings else None
    request = _request(settings, {**options, "reducer": reducer})
    if os.environ.get("RANK", "0") != "0":  # one of several processes, of which the first does the talking
        run(request)
        return
    with shown_notes():
        if is_dry_run:
            record = dry_run(request)
        else:
            if request.resume and not is_unfinished(request.out) and not request.out.exists():
                note(f"nothing to resume for '{request.out}'; starting at the beginning.")
            with progress_screen() as new_bar:
                record = run(request, progress=new_bar())
    if as_json:
        # A record is "failed" until its run is done, which nobody wants of this one.
        print_json({**record.to_dict(), "status": "dry run"} if is_dry_run else record.to_dict())
        return
    if is_dry_run:
        is_taken = request.out.exists() and not request.overwrite and not request.resume
        _print_plan(record, f"{request.out}, which exists: add --overwrite" if is_taken else str(request.out))
    else:
        _print_result(record, request.out)


def _request(settings: Sequence[str], options: dict[str, Any]) -> "RunRequest":
    """Return what is asked for, or, where only --resume and --out are given, what was asked for before."""
    from rankfold.runs.request import RunRequest
    from rankfold.runs.resume import read_start

    context = click.get_current_context()
    given = {
        name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if options["resume"] and given <= _ALONE:
        return replace(read_start(options["out"]).request, out=options["out"], resume=True)
    for name in ("model", "method"):
        if options[name] is None:
            raise click.MissingParameter(param_hint=f"'--{name}'", param_type="option")
    if "mixture" in given:
        check_mixture(options["mixture"], [options["task"]])
    return RunRequest(options=parse_settings(settings), **options)


def _print_plan(record: "RunRecord", out: str) -> None:
    training, parameters = record.training, record.parameters
    rows = ", ".join(f"{count} {split}" for split, count in record.data.rows.items())
    lines = [
        ("model", f"{record.model.name} ({record.model.source})"),
        ("task", f"{record.task.name}, {record.task.kind}, measured by {record.task.metric}"),
        ("rows", rows),
        ("method", record.method.name),
        ("trainable parameters", f"{parameters.trainable:,} in the adapter, {parameters.head:,} in the head"),
        ("steps", f"{training.steps:,} of {training.batch_size} rows ({training.epochs:.3g} epochs)"),
        ("learning rate", f"{training.learning_rate:g}, {training.scheduler}, warm-up {training.warmup:.0%}"),
        ("precision", f"{training.precision}, {record.hardware.gpu or record.hardware.cpu}"),
        ("would write", out),
    ]
    print_table(("dry run", ""), lines, left=(0, 1))


def _print_result(record: "RunRecord", out: Path) -> None:
    parameters, seconds = record.parameters, record.seconds
    lines = [(name, f"{value:.4f}") for name, value in record.metrics.items()]
    lines += [(f"{record.task.metric} of {name}", f"{value:.4f}") for name, value in record.baselines.items()]
    lines += [
        ("trainable parameters", f"{parameters.trainable:,} in the adapter, {parameters.head:,} in the head"),
        ("weights file", f"{record.bytes.weights_file:,} bytes"),
        ("seconds", f"{seconds.total:.1f} ({seconds.train:.1f} training, {seconds.evaluate:.1f} evaluating)"),
        ("written to", str(out)),
    ]
    task = f"{record.task.name} by {record.task.scoring}" if record.task.scoring else record.task.name
    title = f"{record.method.name} on {task} with {record.model.name}, seed {record.training.seed}"
    print_table((title, ""), lines, left=(0, 1))
