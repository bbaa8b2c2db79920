"""`rankfold params`: parameter counts of a method on a model, without loading weights."""

from collections.abc import Sequence
from dataclasses import asdict

import click

from rankfold.cli.console import note, print_json, print_table, shown_notes
from rankfold.cli.options import json_option, model_and_method_options, parse_settings
from rankfold.runs.check import check_method_name


@click.command()
@model_and_method_options
@click.option("--by-module", is_flag=True, help="Show every layer.")
@json_option
def command(
    *,
    model: str,
    method: str,
    settings: Sequence[str],
    task_kind: str | None,
    num_labels: int,
    by_module: bool,
    as_json: bool,
) -> None:
    """Count the parameters of a method on a model, without loading weights."""
    check_method_name(method)
    from rankfold.bench.estimates import count_on_meta  # seconds of imports that --help can do without

    with shown_notes():
        counts = count_on_meta(model, method, parse_settings(settings), kind=task_kind, num_labels=num_labels)
    if as_json:
        print_json({"model": model, "method": method, **asdict(counts)})
        return
    parts = [
        ("stored", counts.stored),
        ("trainable", counts.trainable),
        ("active", counts.active),
        *((f"  {name}", count) for name, count in counts.by_factor.items()),
        ("task head", counts.head),
        *([] if counts.lora is None else [("plain LoRA of the same rank", counts.lora)]),
        ("base model", counts.base),
    ]
    rows = [[name, f"{count:,}", f"{count / counts.base:.4%}"] for name, count in parts]
    print_table(["numbers", "count", "of the base"], rows, title=f"{method} on {model}")
    if by_module:
        layers = [[path, f"{count:,}"] for path, count in counts.by_module.items()]
        print_table(["layer", "trainable"], layers)
    if counts.lora:
        note(f"{method} trains {counts.trainable / counts.lora:.1%} of what plain LoRA trains.")
