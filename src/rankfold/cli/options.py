"""Options that several commands share, and the reading of `--set key=value`."""

import json
from collections.abc import Callable, Iterable

import click

from rankfold.errors import SpecError

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]

json_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table."
)

dtype_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="Round the values to this type; the error is stated.",
)

set_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the method, such as r=8; may be repeated. Lists: target_modules=query,value.",
)


def parse_settings(settings: Iterable[str]) -> dict[str, Value]:
    """Read `key=value` pairs; a value is JSON where it reads as JSON, else text, else a comma list.

    Args:
        settings: Texts such as "r=8", "init=uniform", "target_modules=query,value".

    Raises:
        SpecError: If a text has no "=", an empty key, or repeats a key.
    """
    values: dict[str, Value] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(f"'{text}' is not a setting; write it as key=value, for example r=8.")
        if key in values:
            raise SpecError(f"'{key}' is set twice; keep one of them.")
        values[key] = _parse_value(value.strip())
    return values


def _parse_value(text: str) -> Value:
    if text in ("True", "False", "None"):  # as Python spells them
        text = {"True": "true", "False": "false", "None": "null"}[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    if "," in text and not text.startswith(("[", "{", '"')):
        return [_parse_value(part.strip()) for part in text.split(",") if part.strip()]
    return text
