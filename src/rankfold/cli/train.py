"""`rankfold train`: fine-tune a model with one method."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, print_json, print_table, progress_screen, shown_notes
from rankfold.cli.options import (
    SectionedCommand,
    check_mixture,
    json_option,
    merge_values,
    request_options,
    stated_values,
)
from rankfold.runs.check import check_request
from rankfold.runs.fields import differences, fields_of, read_yaml
from rankfold.runs.output import find_beginning, refuse_differences
from rankfold.runs.request import RunRequest

if TYPE_CHECKING:
    from rankfold.runs.record import RunRecord

_EPILOG = """\b
Examples:
  rankfold train --model minilm --task bbc_news --method relayed_lora --set r=8 --set k=8 --out runs/relayed
  rankfold train --model minilm --task mrpc --data-root data --method peft:lora --out runs/mrpc
  rankfold train --model smollm2 --data rows.jsonl --method lora --steps 200 --out runs/answers
  rankfold train --resume --out runs/answers
  rankfold train --config run.yaml --seed 1 --out runs/seed1
"""


@click.command(cls=SectionedCommand, epilog=_EPILOG)
@request_options(RunRequest)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A YAML file with field names as --print-config prints them; the command line takes precedence.",
)
@click.option("--print-config", is_flag=True, help="Print the values that are given, as YAML for --config.")
@click.option(
    "--dry-run", "is_dry_run", is_flag=True, help="Build and count everything, train and write nothing."
)
@json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    config: Path | None,
    print_config: bool,
    is_dry_run: bool,
    as_json: bool,
    **_options: Any,  # which `make_request` reads off the context
) -> None:
    """Fine-tune a model with one method, and write the adapter with its record and curve."""
    if print_config:
        click.echo(_config_text(context, config), nl=False)
        return
    request = make_request(context, config)
    check_request(request, writes=not is_dry_run)
    from rankfold.runs.run import dry_run, run  # seconds of imports

    if os.environ.get("RANK", "0") != "0":  # of several processes the first one prints
        run(request)
        return
    with shown_notes():
        if is_dry_run:
            record = dry_run(request)
        else:
            _note_missing_start(request)
            with progress_screen() as new_bar:
                record = run(request, progress=new_bar())
    if as_json:
        # The record of a dry run has the status "failed", as of every run that has not ended.
        print_json({**record.to_dict(), "status": "dry run"} if is_dry_run else record.to_dict())
    elif is_dry_run:
        is_taken = request.out.exists() and not request.overwrite and not request.resume
        _print_plan(record, f"{request.out}, which exists: add --overwrite" if is_taken else str(request.out))
    else:
        _print_result(record, request.out)


def make_request(context: click.Context, config: Path | None) -> RunRequest:
    """Return the request of a command line; with --resume and no method, that of the run in --out.

    Raises:
        SpecError: If a value is missing or not possible, or differs from the run to resume.
        DataError: If the YAML file cannot be read, or there is no run to resume.
    """
    stated = stated_values(context, RunRequest)
    values = merge_values(context, RunRequest, config)
    if values.get("resume") and "out" in values and not {"model", "method"} & values.keys():
        return _resume_as_it_began(values)
    request = RunRequest(**values)
    if "mixture" in stated:
        check_mixture(request.mixture, [request.task])
    return request


def _config_text(context: click.Context, config: Path | None) -> str:
    """Return the values that the command line and a YAML file state, checked, as YAML."""
    names = {*stated_values(context, RunRequest), *(() if config is None else read_yaml(RunRequest, config))}
    fields = fields_of(RunRequest).items()
    required: dict[str, Any] = {name: name for name, field in fields if field.is_required()}
    return RunRequest(**required | merge_values(context, RunRequest, config)).to_yaml(names)


def _resume_as_it_began(values: Mapping[str, Any]) -> RunRequest:
    """Return the request of the run in a folder, with other values where they do not change its result."""
    out: Path = values["out"]
    beginning = find_beginning(out).request
    request = replace(beginning, **values)
    refuse_differences(out, list(differences(beginning.identity(), request.identity())))
    return request


def _note_missing_start(request: RunRequest) -> None:
    from rankfold.runs.resume import is_unfinished

    if request.resume and not is_unfinished(request.out) and not request.out.exists():
        note(f"nothing to resume for '{request.out}'; starting at the beginning.")


def _print_plan(record: "RunRecord", out: str) -> None:
    training, parameters = record.training, record.parameters
    rows = ", ".join(f"{count} {split}" for split, count in record.data.rows.items())
    rows_of_update = training.batch_size * record.request.gradient_accumulation
    lines = [
        ("model", f"{record.model.name} ({record.model.source})"),
        ("task", f"{record.task.name}, {record.task.kind}, measured by {record.task.metric}"),
        ("rows", rows),
        ("method", record.method.name),
        ("trainable parameters", f"{parameters.trainable:,} in the adapter, {parameters.head:,} in the head"),
        ("steps", f"{training.steps:,} of {rows_of_update} rows ({training.epochs:.3g} epochs)"),
        ("learning rate", f"{training.learning_rate:g}, {training.scheduler}, warm-up {training.warmup:.0%}"),
        ("precision", f"{training.precision}, {record.hardware.gpu or record.hardware.cpu}"),
        ("would write", out),
    ]
    print_table(("dry run", ""), lines, left=(0, 1))


def _print_result(record: "RunRecord", out: Path) -> None:
    parameters, seconds = record.parameters, record.seconds
    from rankfold.cli.results import metric_lines
    from rankfold.runs.remarks import remarks

    baselines = record.baseline_metrics or {
        name: {record.task.metric: value} for name, value in record.baselines.items()
    }
    lines = metric_lines(record.metrics, record.predictions, record.training.seed)
    lines += [
        (f"{metric} of {name}", f"{value:.4f}", "")
        for name, scores in baselines.items()
        for metric, value in scores.items()
    ]
    rows = ", ".join(f"{count:,} {split}" for split, count in record.data.rows.items())
    heads = f"{parameters.trainable:,} in the adapter, {parameters.head:,} in the head"
    lines += [
        ("rows", rows, ""),
        ("trainable parameters", heads, ""),
        ("weights file", f"{record.bytes.weights_file:,} bytes", ""),
        (
            "seconds",
            f"{seconds.total:.1f} ({seconds.train:.1f} training, {seconds.evaluate:.1f} evaluating)",
            "",
        ),
        ("written to", str(out), ""),
    ]
    for name, stored in record.stored.items():
        text = f"{stored.bytes:,} bytes of values, {record.task.metric} {stored.score:.4f}"
        lines.insert(-1, (f"stored as {name}", text, ""))
    training = record.training
    if training.stopped_early:
        lines.insert(-1, ("stopped early", f"after {training.steps:,} updates", ""))
    if training.best_step is not None:
        best = f"of update {training.best_step:,}, the best in {record.request.save_best}"
        lines.insert(-1, ("saved adapter", best, ""))
    task = f"{record.task.name} by {record.task.scoring}" if record.task.scoring else record.task.name
    title = f"{record.method.name} on {task} with {record.model.name}, seed {record.training.seed}"
    print_table((title, "", "95 % interval"), lines, left=(0, 1, 2))
    for remark in remarks(record):
        note(remark)
