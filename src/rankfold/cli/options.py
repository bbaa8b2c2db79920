"""Options of the commands: shared ones, those made from a request's fields, and help pages with sections."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, final

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from rankfold.errors import SpecError
from rankfold.models.names import EMBEDDED_LIST
from rankfold.runs.fields import (
    Request,
    choices_of,
    fields_of,
    flag_of,
    option_of,
    read_yaml,
    split_list,
    value_type,
)
from rankfold.runs.request import DataRequest, overlay

_Function = TypeVar("_Function", bound=Callable[..., Any])


@final
class SectionedOption(click.Option):
    """An option that knows its section.

    Args:
        *args: As for `click.Option`.
        section: The heading it stands under.
        **kwargs: As for `click.Option`.
    """

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


@final
class SectionedCommand(click.Command):
    """A command whose help lists its options by section, in the order in which sections first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options for each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx)
            if line is not None:
                is_sectioned = isinstance(parameter, SectionedOption)
                lines = sections.setdefault(parameter.section, []) if is_sectioned else others
                lines.append(line)
        for name, lines in [*sections.items(), ("Other options", others)]:
            with formatter.section(name):
                formatter.write_dl(lines)


def section(name: str) -> Callable[..., Callable[[_Function], _Function]]:
    """Return `click.option` for one section; help pages state the defaults that are given."""

    def option(*flags: str, **settings: Any) -> Callable[[_Function], _Function]:
        settings.setdefault("show_default", "default" in settings)
        return click.option(*flags, cls=SectionedOption, section=name, **settings)

    return option


Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]

json_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table."
)

_rounding = section("Rounding")

_ROUNDING_OPTIONS = (
    _rounding(
        "--dtype",
        type=click.Choice(["fp32", "fp16", "bf16", "int8", "int4", "int3", "int2"]),
        help="Round the values to this type; the measured change is printed, and stored for the types of "
        "integers.",
    ),
    _rounding(
        "--model", help="The base model to measure with; the folder that the adapter names if left out."
    ),
    _rounding(
        "--data",
        metavar="PATH|HUB_ID",
        help="Data whose texts outputs are compared on, and whose metric is measured; news articles if left "
        "out.",
    ),
    _rounding("--task", help="A named task whose metric is measured, such as stsb."),
    _rounding(
        "--data-root", metavar="DIR", envvar="RANKFOLD_DATA", help="Folder with one subfolder per task."
    ),
    _rounding(
        "--weights-only", is_flag=True, help="Measure the weights alone, without loading the base model."
    ),
)


def rounding_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: add --dtype, and the options that say how the change is measured."""
    for option in reversed(_ROUNDING_OPTIONS):
        command = option(command)
    return command


def check_rounding(dtype: str | None, measurement: Mapping[str, Any]) -> None:
    """Check that nothing is to be measured where nothing is rounded to integers.

    Raises:
        SpecError: If it is.
    """
    names = [name for name, value in measurement.items() if value and name != "data_root"]
    if names and (dtype is None or not dtype.startswith("int")):
        raise SpecError(
            f"--{names[0].replace('_', '-')} is for measuring a type of integers; add --dtype int4, or leave "
            "it out."
        )


set_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the method, such as r=8; may be repeated. Lists: target_modules=query,value.",
)


def parse_settings(settings: Iterable[str], flag: str = "--set") -> dict[str, Value]:
    """Read `key=value` pairs; a value is JSON where it reads as JSON, else text, else a comma list.

    Args:
        settings: Texts such as "r=8", "init=uniform", "target_modules=query,value".
        flag: The option that they were given with, for messages.

    Raises:
        SpecError: If a text has no "=", an empty key, or repeats a key.
    """
    values: dict[str, Value] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(f"{flag} '{text}' is not a setting; write it as key=value, for example r=8.")
        if key in values:
            raise SpecError(f"{flag} gives '{key}' twice; keep one of them.")
        values[key] = _parse_value(value.strip())
    return values


def _parse_value(text: str) -> Value:
    if text in ("True", "False", "None"):  # as Python spells them
        text = {"True": "true", "False": "false", "None": "null"}[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or numbers and nesting beyond all limits
        pass
    if "," in text and not text.startswith(("[", "{", '"')):
        # A comma at the end makes a list of one item.
        return [_parse_value(part) for part in split_list("a setting", text.removesuffix(","))]
    return text


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
    elif option.is_list:
        options.append(click.option(flag, name, multiple=True, callback=_join, **settings))
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


def _join(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> str | None:
    return ",".join(values) if values else None


def _parse(
    _context: click.Context, parameter: click.Parameter, settings: Sequence[str]
) -> dict[str, Value] | None:
    return parse_settings(settings, parameter.opts[0]) if settings else None


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
        click.option(
            "--model",
            required=True,
            help=f"{EMBEDDED_LIST}, a folder, a config.json or a hub id.",
        ),
    ):
        command = cast("_Function", option(command))
    return command
