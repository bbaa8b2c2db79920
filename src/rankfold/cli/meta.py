"""The options of commands that look at a model and a method without weights."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from rankfold.cli.options import set_option

_Function = TypeVar("_Function", bound=Callable[..., Any])


def model_and_method_options(command: _Function) -> _Function:
    """Add the options that say which method on which model."""
    for option in (
        click.option(
            "--num-labels",
            type=click.IntRange(min=1),
            default=2,
            show_default=True,
            help="Classes of the head.",
        ),
        click.option(
            "--kind",
            "task_kind",
            help="The kind of task, such as regression; by the architecture if left out.",
        ),
        set_option,
        click.option(
            "--method",
            required=True,
            help="A method of `rankfold methods`, or one of PEFT's, such as peft:lora.",
        ),
        click.option("--model", required=True, help="minilm, smollm2, a folder, a config.json or a hub id."),
    ):
        command = cast("_Function", option(command))
    return command
