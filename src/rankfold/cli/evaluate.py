"""`rankfold evaluate`: evaluate a saved adapter on held-out data or by the lm-evaluation-harness."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from rankfold.cli.console import note, print_json, print_table
from rankfold.cli.data import column_options, scoring_option, source_options
from rankfold.cli.notes import shown_notes
from rankfold.cli.options import json_option
from rankfold.cli.sections import SectionedCommand, section
from rankfold.errors import SpecError
from rankfold.files import check_writable

if TYPE_CHECKING:
    from rankfold.runs.evaluate import EvaluateResult
    from rankfold.runs.harness import HarnessMetric
    from rankfold.runs.record import RunRecord

_what = section("What to evaluate")
_DATA = "Data"
_data = section(_DATA)
_where = section("Where")
_harness = section("Tasks of the lm-evaluation-harness")

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
_HARNESS_OPTIONS = ("include", "limit", "num_fewshot", "chat_template", "out")
_METRIC_COLUMNS = ("task", "version", "few-shot", "filter", "metric", "value", "standard error")


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
@_data("--kind", help="The kind of task, such as regression.")
@column_options(_DATA)
@_data("--max-length", type=int, help="Most tokens of a row; that of the run if left out.")
@scoring_option(_DATA, "that of the run if left out")
@_harness(
    "--harness",
    "tasks",
    metavar="TASK",
    multiple=True,
    help="A task, group or tag of the harness, or a YAML file; may be repeated.",
)
@_harness(
    "--harness-include",
    "include",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="Folder with further task definitions; may be repeated.",
)
@_harness("--limit", type=int, help="Examples per task; all if left out.")
@_harness("--num-fewshot", type=int, help="Solved examples in the prompt; the task's own number if left out.")
@_harness("--chat-template", is_flag=True, help="Put prompts into the tokenizer's chat template.")
@_harness("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the full result.")
@_where("--batch-size", type=int, help="Rows at a time; that of the run if left out.")
@_where("--precision", help="auto, fp32 or bf16; that of the run if left out.")
@_where("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@json_option
def command(
    adapter: Path, split: str, device: str, precision: str | None, *, as_json: bool, **given: Any
) -> None:
    """Evaluate the adapter in the folder ADAPTER; options left out are those of the run.json beside it.

    With --harness the lm-evaluation-harness brings data and metrics (extra `harness`).
    """
    from rankfold.runs.evaluate import EvaluateRequest, evaluate
    from rankfold.runs.records import find_record
    from rankfold.tasks import TaskRequest
    from rankfold.tasks.data.columns import Columns

    record = find_record(adapter)
    harness = {name: given.pop(name) for name in ("tasks", *_HARNESS_OPTIONS)}
    _check_options(is_harness=bool(harness["tasks"]))
    options = _completed(given, record)
    if options["model"] is None:
        raise SpecError(f"'{adapter}' has no run.json that names its base model; name it with --model.")
    batch_size = 16 if options["batch_size"] is None else options["batch_size"]
    precision = precision or (record.training.precision if record else "auto")
    if harness["tasks"]:
        _evaluate_with_harness(
            harness,
            adapter=adapter,
            model=options["model"],
            batch_size=batch_size,
            max_length=given["max_length"],
            precision=precision,
            device=device,
            as_json=as_json,
        )
        return
    columns = Columns(*(options[f"{name}_column"] for name in ("text", "pair", "label", "group")))
    request = EvaluateRequest(
        adapter=adapter,
        model=options["model"],
        data=TaskRequest(options["task"], options["data"], options["data_root"], options["kind"], columns),
        split=cast(Any, split),
        scoring=options["scoring"],
        batch_size=batch_size,
        max_length=options["max_length"],
        precision=cast(Any, precision),
        device=cast(Any, device),
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


def _check_options(*, is_harness: bool) -> None:
    """Refuse options of the harness without it, and data options beside it."""
    context = click.get_current_context()
    names = ("split", *_DATA_OPTIONS) if is_harness else _HARNESS_OPTIONS
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is ParameterSource.COMMANDLINE:
            raise SpecError(
                f"the tasks of --harness bring their own data; leave {parameter.opts[0]} out."
                if is_harness
                else f"{parameter.opts[0]} is of the harness; name a task with --harness, or leave it out."
            )


def _evaluate_with_harness(harness: dict[str, Any], *, as_json: bool, **options: Any) -> None:
    from rankfold.runs.harness import HarnessRequest, evaluate_with_harness

    file: Path | None = harness.pop("out")
    if file is not None:
        check_writable(file)
    with shown_notes():
        result = evaluate_with_harness(HarnessRequest(**harness, **options))
    if file is not None:
        result.write(file)
    if as_json:
        metrics = [asdict(metric) for metric in result.metrics]
        print_json({"adapter": result.adapter, "model": result.model, "metrics": metrics})
        return
    rows = [_metric_cells(metric) for metric in result.metrics]
    print_table(_METRIC_COLUMNS, rows, title=f"{result.adapter} with {result.model}", left=(0, 3, 4))


def _metric_cells(metric: "HarnessMetric") -> tuple[str, ...]:
    fewshot = "" if metric.num_fewshot is None else str(metric.num_fewshot)
    stderr = "" if metric.stderr is None else f"{metric.stderr:.4f}"
    return (metric.task, metric.version, fewshot, metric.filter, metric.metric, f"{metric.value:.4f}", stderr)


def _completed(given: dict[str, Any], record: "RunRecord | None") -> dict[str, Any]:
    """Return the options as given, and for those left out what the run was given."""
    if record is None:
        return given
    run = record.request
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
