"""`rankfold lr`: at which learning rate each part of an adapter would be trained."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from rankfold.cli.console import print_json, print_table
from rankfold.cli.meta import model_and_method_options
from rankfold.cli.notes import shown_notes
from rankfold.cli.options import json_option, parse_settings
from rankfold.cli.rates import rate_options, rates_asked

_EPILOG = """\b
Examples:
  rankfold lr --model minilm --method tlora_plus --tlora-ratio 4
  rankfold lr --model minilm --method lora --loraplus-ratio 16 --learning-rate 5e-5
  rankfold lr --model minilm --method tlora_plus --lr-group core=8 --lr-group up=2
"""


@click.command(epilog=_EPILOG)
@model_and_method_options
@rate_options(click.option)
@click.option("--learning-rate", type=float, help="The base rate; the method's own if left out.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Weight decay of matrices.")
@json_option
def command(
    *,
    model: str,
    method: str,
    settings: Sequence[str],
    task_kind: str | None,
    num_labels: int,
    learning_rate: float | None,
    weight_decay: float,
    as_json: bool,
    **rates: Any,
) -> None:
    """List the trained parts of a method with their learning rates, without loading weights."""
    from rankfold.runs.methods import find_method, freeze_rest  # seconds of imports
    from rankfold.tasks.kinds import kind_base
    from rankfold.train.optimizer import parameter_groups
    from rankfold.train.schedule import COLUMNS, RateTable

    rate_settings = rates_asked(**rates)
    with shown_notes():
        head_base = kind_base(model, kind=task_kind, num_labels=num_labels)
    method_of_run = find_method(method)
    _, peft_model = head_base.with_adapter(
        method_of_run.config(parse_settings(settings), head_base.head.task_type, seed=0)
    )
    freeze_rest(peft_model, method_of_run)
    base = method_of_run.learning_rate if learning_rate is None else learning_rate
    table = RateTable.of(parameter_groups(peft_model, lr=base, weight_decay=weight_decay, **rate_settings))
    if as_json:
        groups = [{"name": group.name, **asdict(group)} for group in table.groups]
        print_json({"model": model, "method": method, "learning_rate": base, "groups": groups})
        return
    cells = [group.cells() for group in table.groups]
    print_table(COLUMNS, cells, title=f"{method} on {model}, learning rate {base:g}")
