"""Options of the command line made from the fields of a request, and the request made from their values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from rankfold.cli.options import Value, parse_settings
from rankfold.cli.sections import SectionedOption
from rankfold.runs.fields import Request, fields_of, flag_of, option_of, read_yaml, value_type
from rankfold.runs.request import overlay

_SWITCH = "_switch"


def request_options(
    cls: type[Request], names: Iterable[str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: add the options of a request's fields, section by section.

    An option that is not given has the value None, also where its field has a default.

    Args:
        cls: The class of the request.
        names: Which of its fields; all of them if None.
    """
    fields = {name: field for name, field in fields_of(cls).items() if names is None or name in set(names)}

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(fields.items()):
            for make in reversed(_options_of(name, field)):
                command = make(command)
        return command

    return add


def _options_of(name: str, field: FieldInfo) -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    option, kind, flag = option_of(field), value_type(field), flag_of(name, field)
    settings: dict[str, Any] = {"default": None, "help": _help(field), "metavar": option.metavar}
    made: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    if option.switch is not None:
        switch = {"is_flag": True, "default": None, "help": f"As {flag}, with the usual options."}
        made.append(((option.switch, f"{name}{_SWITCH}"), switch))
    if kind is bool:
        made.append(((f"{flag}/--no-{name.replace('_', '-')}", name), {**settings, "is_flag": True}))
    elif kind is dict:
        made.append(((flag, name), {**settings, "multiple": True, "callback": _parse}))
    else:
        value = click.Path(path_type=Path) if kind is Path else kind
        variable = {"envvar": option.envvar, "show_envvar": option.envvar is not None}
        made.append(((flag, name), {**settings, **variable, "type": value}))
    return [
        click.option(*flags, cls=SectionedOption, section=option.section, **given) for flags, given in made
    ]


def _help(field: FieldInfo) -> str:
    text, default = field.description or "", field.get_default(call_default_factory=True)
    is_shown = isinstance(default, str | int | float) and not isinstance(default, bool)
    return f"{text}  [default: {default}]" if is_shown else text


def _parse(
    _context: click.Context, _parameter: click.Parameter, settings: Sequence[str]
) -> dict[str, Value] | None:
    return parse_settings(settings) if settings else None


def stated_values(context: click.Context, cls: type[Request]) -> dict[str, Any]:
    """Return the values of a request that the command line states, by field; none from the environment."""
    values: dict[str, Any] = {}
    for name in fields_of(cls):
        is_stated = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if is_stated and context.params[name] is not None:
            values[name] = context.params[name]
        elif context.params.get(f"{name}{_SWITCH}"):
            values[name] = {}
    return values


def merge_values(context: click.Context, cls: type[Request], config: Path | None) -> dict[str, Any]:
    """Return the values of a request: of the environment, over them a YAML file's, then the command line's.

    Options by name are merged name by name: `--set r=4` leaves the file's other options as they are.

    Raises:
        DataError: If the file cannot be read.
        SpecError: If the file names a field that does not exist.
    """
    values = {
        name: context.params[name]
        for name in fields_of(cls)
        if context.get_parameter_source(name) is ParameterSource.ENVIRONMENT
    }
    if config is not None:
        values = overlay(values, read_yaml(cls, config))
    stated = stated_values(context, cls)
    for name, value in stated.items():
        earlier = values.get(name)
        if isinstance(value, Mapping) and isinstance(earlier, Mapping):
            stated[name] = {**earlier, **value}
    return overlay(values, stated)
