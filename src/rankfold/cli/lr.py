"""`rankfold lr`: at which learning rate each part of an adapter would be trained."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rankfold.cli.console import print_json, print_table, shown_notes
from rankfold.cli.options import (
    json_option,
    merge_values,
    model_and_method_options,
    parse_settings,
    request_options,
)
from rankfold.runs.check import check_method_name
from rankfold.runs.request import RunRequest

_EPILOG = """\b
Examples:
  rankfold lr --model minilm --method tlora_plus --tlora-ratio 4
  rankfold lr --model minilm --method lora --loraplus-ratio 16 --learning-rate 5e-5
  rankfold lr --model minilm --method tlora_plus --lr-group core=8 --lr-group up=2
"""

_FIELDS = (
    *("learning_rate", "weight_decay"),
    *("tlora_ratio", "loraplus_ratio", "lr_groups", "lr_per_module", "lr_base_role"),
)


@click.command(epilog=_EPILOG)
@model_and_method_options
@request_options(RunRequest, _FIELDS)
@json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    settings: Sequence[str],
    task_kind: str | None,
    num_labels: int,
    as_json: bool,
    **_options: Any,  # fields of the request, read off the context
) -> None:
    """List the trained parts of a method with their learning rates, without loading weights."""
    values = merge_values(context, RunRequest)
    request = RunRequest(**values, options=parse_settings(settings), kind=task_kind, out=Path())
    check_method_name(request.method)
    from rankfold.runs.methods import check_rate, find_method, freeze_rest, recipe_of  # seconds of imports
    from rankfold.tasks.kinds import kind_base
    from rankfold.train.optimizer import parameter_groups
    from rankfold.train.schedule import COLUMNS, RateTable

    with shown_notes():
        head_base = kind_base(request.model, kind=request.kind, num_labels=num_labels)
    method = find_method(request.method)
    config = method.config(request.options, head_base.head.task_type, seed=request.seed)
    _, peft_model = head_base.with_adapter(config)
    freeze_rest(peft_model, method)
    recipe = recipe_of(request)
    check_rate(request, recipe)
    base = request.learning_rate or recipe.learning_rate
    groups = parameter_groups(
        peft_model, lr=base, weight_decay=request.weight_decay, **request.rates.non_default()
    )
    table = RateTable.of(groups)
    if as_json:
        rows = [{"name": group.name, **asdict(group)} for group in table.groups]
        print_json({"model": request.model, "method": request.method, "learning_rate": base, "groups": rows})
        return
    cells = [group.cells() for group in table.groups]
    print_table(COLUMNS, cells, title=f"{request.method} on {request.model}, learning rate {base:g}")
