"""`rankfold evaluate`: measure a saved adapter on held-out data."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, print_json, print_table
from rankfold.cli.data import column_options, scoring_option, source_options
from rankfold.cli.notes import shown_notes
from rankfold.cli.options import json_option
from rankfold.cli.sections import SectionedCommand, section
from rankfold.errors import SpecError

if TYPE_CHECKING:
    from rankfold.runs.evaluate import EvaluateResult
    from rankfold.runs.record import RunRecord

_what = section("What to evaluate")
_DATA = "Data"
_data = section(_DATA)
_where = section("Where")

_DATA_OPTIONS = (
    "task",
    "data",
    "data_root",
    "kind",
    "text_column",
    "pair_column",
    "label_column",
    "group_column",
    "scoring",
)
_RUN_OPTIONS = ("model", "batch_size")


@click.command(cls=SectionedCommand)
@click.argument("adapter", type=click.Path(path_type=Path))
@_what("--model", help="The base model; that of the run if left out.")
@_what(
    "--split",
    default="validation",
    show_default=True,
    help="train, validation, test, or validation_mismatched (of mnli).",
)
@source_options(_DATA, task_help="A task whose metric is known; that of the run if left out.")
@_data("--kind", help="classification, regression or instruction.")
@column_options(_DATA)
@_data("--max-length", type=int, help="Most tokens of a row; that of the run if left out.")
@scoring_option(_DATA, "that of the run if left out")
@_where("--batch-size", type=int, help="Rows at a time; that of the run if left out.")
@_where("--precision", help="auto, fp32 or bf16; that of the run if left out.")
@_where("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@json_option
def command(
    adapter: Path, split: str, device: str, precision: str | None, *, as_json: bool, **given: Any
) -> None:
    """Measure the adapter in the folder ADAPTER. What is not said is taken from the run.json beside it."""
    from rankfold.errors import unknown_name
    from rankfold.runs.evaluate import EvaluateRequest, evaluate
    from rankfold.runs.records import find_record
    from rankfold.tasks import SPLITS, TaskRequest
    from rankfold.tasks.data.columns import Columns

    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    record = find_record(adapter)
    options = _completed(given, record)
    if options["model"] is None:
        raise SpecError(f"'{adapter}' has no run.json that names its base model; name it with --model.")
    columns = Columns(*(options[f"{name}_column"] for name in ("text", "pair", "label", "group")))
    request = EvaluateRequest(
        adapter=adapter,
        model=options["model"],
        data=TaskRequest(options["task"], options["data"], options["data_root"], options["kind"], columns),
        split=split,
        scoring=options["scoring"],
        batch_size=16 if options["batch_size"] is None else options["batch_size"],
        max_length=options["max_length"],
        precision=precision or (record.training.precision if record else "auto"),
        device=device,
    )
    with shown_notes():
        result = evaluate(request)
    then = record.data.rows.get(split) if record and record.task.name == result.task else None
    if then is not None and then < result.rows:
        note(f"the run had {then:,} of these {result.rows:,} rows, so its figures may differ.")
    if as_json:
        print_json(asdict(result))
    else:
        _print(result)


def _completed(given: dict[str, Any], record: "RunRecord | None") -> dict[str, Any]:
    """Return the options as given, and for those left out what the run was given."""
    from rankfold.runs.request import RunRequest

    if record is None:
        return given
    run = RunRequest.of_command(record.command)
    # Other data has other columns: then nothing about the run's data holds.
    is_same_data = given["task"] is None and given["data"] is None
    taken = (*_RUN_OPTIONS, *_DATA_OPTIONS) if is_same_data else _RUN_OPTIONS
    known = {"max_length": record.training.max_length} | {name: getattr(run, name) for name in taken}
    return given | {name: value for name, value in known.items() if given[name] is None}


def _print(result: "EvaluateResult") -> None:
    lines = [(name, f"{value:.4f}") for name, value in result.metrics.items()]
    lines += [("loss", f"{result.loss:.4f}"), ("rows", f"{result.rows:,}")]
    scored = f" by {result.scoring}" if result.scoring else ""
    title = f"{result.adapter} on {result.task} ({result.split}) with {result.model}{scored}"
    print_table((title, ""), lines, left=(0, 1))
