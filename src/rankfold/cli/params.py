"""`rankfold params`: what a method would train on a model, counted without loading or drawing any weight."""

from collections.abc import Sequence
from dataclasses import asdict

import click

from rankfold.cli.console import note, print_json, print_table
from rankfold.cli.meta import model_and_method_options
from rankfold.cli.notes import shown_notes
from rankfold.cli.options import json_option, parse_settings


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
    """Count what a method would train on a model, without loading weights."""
    from rankfold.bench.counts import (
        count_on_meta,  # seconds of imports that --help can do without
    )

    with shown_notes():
        counted = count_on_meta(
            model, method, parse_settings(settings), kind=task_kind, num_labels=num_labels
        )
    if as_json:
        print_json({"model": model, "method": method, **asdict(counted)})
        return
    parts = [
        ("stored", counted.stored),
        ("trainable", counted.trainable),
        ("active", counted.active),
        *((f"  {name}", count) for name, count in counted.by_factor.items()),
        ("task head", counted.head),
        *([] if counted.lora is None else [("plain LoRA of the same rank", counted.lora)]),
        ("base model", counted.base),
    ]
    rows = [[name, f"{count:,}", f"{count / counted.base:.4%}"] for name, count in parts]
    print_table(["numbers", "count", "of the base"], rows, title=f"{method} on {model}")
    if by_module:
        layers = [[path, f"{count:,}"] for path, count in counted.by_module.items()]
        print_table(["layer", "trainable"], layers)
    if counted.lora:
        note(f"{method} trains {counted.trainable / counted.lora:.1%} of what plain LoRA trains.")
