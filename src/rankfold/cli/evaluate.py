"""`rankfold evaluate`: evaluate a saved adapter on held-out data or by the lm-evaluation-harness."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rankfold.cli.console import note, print_json, print_table, progress_screen, shown_notes
from rankfold.cli.options import SectionedCommand, json_option, merge_values, request_options, section
from rankfold.errors import SpecError
from rankfold.files import check_writable
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.check import check_data_packages
from rankfold.runs.fields import fields_of
from rankfold.runs.request import DataRequest

if TYPE_CHECKING:
    from rankfold.runs.evaluate import EvaluateResult
    from rankfold.runs.harness import HarnessMetric

_harness = section("Tasks of the lm-evaluation-harness")

_FIELDS = tuple(name for name in fields_of(EvaluateRequest) if name != "adapter")
_HELP_TEXTS = {
    "task": "A task whose metric is known; that of the run if left out.",
    "kind": "The kind of task, such as regression.",
    "max_length": "Maximum tokens per row; that of the run if left out.",
    "scoring": "likelihood, total_likelihood or generated, as for `rankfold train`; that of the run if left "
    "out.",
}
_DATA_OPTIONS = tuple(name for name in fields_of(DataRequest) if name != "max_length")
_HARNESS_OPTIONS = ("include", "limit", "num_fewshot", "harness_chat_template", "out")
_METRIC_COLUMNS = ("task", "version", "few-shot", "filter", "metric", "value", "standard error")


@click.command(cls=SectionedCommand)
@click.argument("adapter", type=click.Path(path_type=Path))
@request_options(EvaluateRequest, _FIELDS, help_texts=_HELP_TEXTS)
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
@_harness("--harness-chat-template", is_flag=True, help="Put prompts into the tokenizer's chat template.")
@_harness("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the full result.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    tasks: tuple[str, ...],
    include: tuple[Path, ...],
    limit: int | None,
    num_fewshot: int | None,
    harness_chat_template: bool,
    out: Path | None,
    as_json: bool,
    **_options: Any,  # fields of the request, read off the context
) -> None:
    """Evaluate the adapter in the folder ADAPTER; options left out are those of the run.json beside it.

    With --harness the lm-evaluation-harness brings data and metrics (extra `harness`).
    """
    from rankfold.runs.records import find_record

    _check_options(is_harness=bool(tasks))
    request = EvaluateRequest(**merge_values(context, EvaluateRequest))
    if tasks:
        harness = {"tasks": tasks, "include": include, "limit": limit, "num_fewshot": num_fewshot}
        _evaluate_with_harness(request, out, as_json=as_json, chat_template=harness_chat_template, **harness)
        return
    check_data_packages("evaluating")
    from rankfold.runs.evaluate import evaluate

    with shown_notes(), progress_screen() as new_bar:
        result = evaluate(request, progress=new_bar())
    record = find_record(request.adapter)
    then = record.data.rows.get(result.split) if record and record.task.name == result.task else None
    if then is not None and then < result.rows:
        note(f"the run had {then:,} of these {result.rows:,} rows, so its figures may differ.")
    if as_json:
        values = asdict(result)
        print_json({**values, "predictions": values.pop("described")})
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


def _evaluate_with_harness(
    request: EvaluateRequest, file: Path | None, *, as_json: bool, **options: Any
) -> None:
    from rankfold.runs.harness import HarnessRequest, evaluate_with_harness
    from rankfold.runs.trained import open_trained

    trained = open_trained(request.adapter)
    complete = request.completed_by(trained.record, trained.manifest)
    if file is not None:
        check_writable(file)
    with shown_notes():
        result = evaluate_with_harness(
            HarnessRequest(
                adapter=request.adapter,
                model=complete.model,
                batch_size=complete.batch_size,
                max_length=request.max_length,
                precision=complete.precision,
                device=complete.device,
                trust_remote_code=complete.trust_remote_code,
                **options,
            )
        )
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


def _print(result: "EvaluateResult") -> None:
    from rankfold.cli.results import class_lines, metric_lines

    lines = metric_lines(result.metrics, result.predictions)
    lines += [("loss", f"{result.loss:.4f}", ""), ("rows", f"{result.rows:,}", "")]
    scoring = f" by {result.scoring}" if result.scoring else ""
    title = f"{result.adapter} on {result.task} ({result.split}) with {result.model}{scoring}"
    print_table((title, "", "95 % interval"), lines, left=(0, 1, 2))
    if classes := class_lines(result.predictions, result.label_names):
        print_table(("class", "precision", "recall", "F1", "rows", "predicted"), classes)
