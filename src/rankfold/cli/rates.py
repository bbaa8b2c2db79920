"""Options for learning rates by role, which `train` and `lr` share."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from rankfold.cli.options import Value, parse_settings
from rankfold.train.schedule import Rates

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _parsed(
    _context: click.Context, _parameter: click.Parameter, settings: Sequence[str]
) -> dict[str, Value]:
    return parse_settings(settings)


_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("--tlora-ratio",),
        {"type": float, "metavar": "R", "help": "TLoRA+: down : core : up = 1 : R^1.5 : R^0.5."},
    ),
    (
        ("--loraplus-ratio",),
        {"type": float, "metavar": "R", "help": "LoRA+: the up factor learns R times as fast."},
    ),
    (
        ("--lr-group", "lr_groups"),
        {
            "multiple": True,
            "metavar": "ROLE=FACTOR",
            "callback": _parsed,
            "help": "Multiple of the rate of down, core, up, scale, router or head; may be repeated.",
        },
    ),
    (
        ("--lr-per-module",),
        {"is_flag": True, "help": "TLoRA+ with the sizes of each layer in place of a ratio."},
    ),
    (
        ("--lr-base-role",),
        {
            "default": "down",
            "show_default": True,
            "help": "TLoRA+: which of down, core and up has the learning rate itself.",
        },
    ),
)


def rate_options(option: Callable[..., Callable[[_Function], _Function]]) -> Callable[[_Function], _Function]:
    """Decorator: add the options of learning rates by role; `option` makes them, as `click.option` does."""

    def add(command: _Function) -> _Function:
        for flags, settings in reversed(_OPTIONS):
            command = option(*flags, **settings)(command)
        return command

    return add


def rates_asked(**options: Any) -> dict[str, Any]:
    """Return the options that were given, by the names they have in `rankfold.parameter_groups`.

    Raises:
        SpecError: If a value is not possible, or options do not go together.
    """
    return Rates(**{name.removeprefix("lr_"): value for name, value in options.items()}).non_default()
