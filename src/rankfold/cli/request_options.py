"""Options of the command line made from the fields of a request, and the request made from their values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from rankfold.cli.options import Value, parse_settings
from rankfold.cli.sections import SectionedOption
from rankfold.errors import SpecError
from rankfold.runs.fields import Request, choices_of, fields_of, flag_of, option_of, read_yaml, value_type
from rankfold.runs.request import DataRequest, overlay

_SWITCH = "_switch"

DATA_FIELDS = (*fields_of(DataRequest), "train_rows", "eval_rows")
"""The fields of a run that name its data and limit its rows."""


def request_options(
    cls: type[Request],
    names: Iterable[str] | None = None,
    *,
    section: str | None = None,
    help_texts: Mapping[str, str] | None = None,
    shows_defaults: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: add the options of a request's fields, section by section.

    An option that is not given has the value None, also where its field has a default.

    Args:
        cls: The class of the request.
        names: Which of its fields; all of them if None.
        section: A heading for all of them, instead of their own.
        help_texts: Other help texts, by field.
        shows_defaults: Whether the help page states the defaults of the fields, which hold for one run and
            not for a suite with settings of its own.
    """
    fields = {name: field for name, field in fields_of(cls).items() if names is None or name in set(names)}

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(fields.items()):
            text = (help_texts or {}).get(name) or _help(field, shows_default=shows_defaults)
            for make in reversed(_options_of(name, field, text, section)):
                command = make(command)
        return command

    return add


def _options_of(
    name: str, field: FieldInfo, text: str, section: str | None
) -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    option, kind, flag = option_of(field), value_type(field), flag_of(name, field)
    common: dict[str, Any] = {"cls": SectionedOption, "section": section or option.section, "default": None}
    choices = f"[{'|'.join(choices_of(field))}]" if choices_of(field) else None
    settings: dict[str, Any] = {**common, "help": text, "metavar": option.metavar or choices}
    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = []
    if option.switch is not None:
        help_text = f"As {flag}, with the usual options."
        options.append(
            click.option(option.switch, f"{name}{_SWITCH}", is_flag=True, help=help_text, **common)
        )
    if kind is bool:
        options.append(click.option(f"{flag}/--no-{name.replace('_', '-')}", name, is_flag=True, **settings))
    elif kind is dict:
        options.append(click.option(flag, name, multiple=True, callback=_parse, **settings))
    else:
        value = click.Path(path_type=Path) if kind is Path else kind
        variable = {"envvar": option.envvar, "show_envvar": option.envvar is not None}
        options.append(click.option(flag, name, type=value, **variable, **settings))
    return options


def _help(field: FieldInfo, *, shows_default: bool) -> str:
    text, default = field.description or "", field.get_default(call_default_factory=True)
    if not shows_default:
        return text.partition("  [default")[0]
    if field.is_required():
        return f"{text}  [required]"
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


def merge_values(context: click.Context, cls: type[Request], config: Path | None = None) -> dict[str, Any]:
    """Return the values of a request: of the environment, over them a YAML file's, then the command line's.

    Mappings (--set, --lr-group) are merged key by key: `--set r=4` keeps the file's other options.

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
    changes = stated_values(context, cls)
    for name, value in changes.items():
        earlier = values.get(name)
        if isinstance(value, Mapping) and isinstance(earlier, Mapping):
            changes[name] = {**earlier, **value}
    return overlay(values, changes)


def check_mixture(mixture: str, tasks: Iterable[str | None]) -> None:
    """Refuse --mixture where no task is a mixture.

    Raises:
        SpecError: If none of the tasks is a mixture.
    """
    names = [task for task in tasks if task]
    if not any("+" in task for task in names):
        only = f"'{names[0]}' is one task" if names else "there is none"
        raise SpecError(
            f"--mixture {mixture} says how many rows each task of a mixture has, and {only}; "
            "leave it out, or join tasks as in mrpc+sst2."
        )
