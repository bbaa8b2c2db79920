"""`rankfold bench estimate`: cost of a run, without data and without weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, print_json, print_table, shown_notes
from rankfold.cli.options import SectionedCommand, json_option, merge_values, request_options, section
from rankfold.runs.check import check_method_name
from rankfold.runs.request import RunRequest

if TYPE_CHECKING:
    from rankfold.bench.estimates import Estimate

_FIELDS = (
    *("model", "method", "options", "task", "data", "data_root", "kind", "freeze_head"),
    *("text_column", "pair_column", "label_column", "hold_out"),
    *("epochs", "steps", "batch_size", "max_length", "precision", "reducer"),
)
_HELP_TEXTS = {
    "model": "minilm, smollm2, a folder, a config.json, a GGUF file or a hub id.",
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


@click.command(cls=SectionedCommand, epilog=_EPILOG)
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
        _cells(run_estimate),
        title=f"{run_estimate.method} on {run_estimate.model}{task}",
    )
    if run_estimate.left_out:
        note(f"not counted, because it cannot be followed without weights: {run_estimate.left_out}.")
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


def _cells(run_estimate: "Estimate") -> list[tuple[str, str]]:
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
