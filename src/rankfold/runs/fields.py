"""A request: named values that are checked once, and can be given as options, JSON, YAML or keywords.

A request's class declares each field once, with its type, range, default and help text. The options of a
command, the settings of a suite, a YAML file and a call in Python all make the same object, so they accept
the same values and are refused in the same words.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, wraps
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
)

from pydantic import ConfigDict, Field, JsonValue, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from rankfold.errors import DataError, RankfoldError, SpecError, nearest, unknown_name

Values = dict[str, JsonValue]
"""A request as JSON values, by field; a field that is None is left out."""

_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_LISTED_DIFFERENCES = 3
_SCALARS = {
    "null": "|~|null",
    "bool": "true|false",
    "int": r"-?(?:0|[1-9][0-9]*)",
    "float": r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|-?\.inf|\.nan",
}
_NOUNS = {"out": "a folder to write", "adapter": "an adapter"}
_NOT_OFFERED = {
    ("precision", "fp16"): "precision 'fp16' is not offered, since its loss scaling skips updates by chance; "
    "use bf16, or fp32.",
}
_BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}


def split_list(option: str, text: str | None) -> tuple[str, ...]:
    """Return the items of a list with commas; none where there is no list.

    Raises:
        SpecError: If an item is empty.
    """
    items = () if text is None else tuple(item.strip() for item in text.split(","))
    if "" in items:
        raise SpecError(f"{option} is '{text}', which has an empty item; put one comma between two items.")
    return items


@dataclass(frozen=True, slots=True)
class Option:
    """Metadata of a field: how the command line offers it, and whether it is part of a run's identity.

    Args:
        section: The heading of the help page.
        flag: The option; by default the name of the field, with dashes.
        switch: An option without a value that gives the field an empty mapping.
        metavar: What stands for the value on the help page.
        envvar: An environment variable that gives the default.
        is_identity: Whether two requests with different values ask for different runs.
        is_per_method: Whether it may differ from method to method in a comparison.
        is_list: Whether the option may be repeated; its values are joined by commas.
    """

    section: str
    flag: str | None = None
    switch: str | None = None
    metavar: str | None = None
    envvar: str | None = None
    is_identity: bool = True
    is_per_method: bool = False
    is_list: bool = False


class Request:
    """Base class of requests, which `request_class` makes dataclasses of."""

    title: ClassVar[str]
    """The request in error messages."""

    sections: ClassVar[tuple[str, ...]]
    """The headings of the help page, in their order."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def to_dict(self) -> Values:
        """Return the request as JSON values, without the fields that are None."""
        values = asdict(self)
        present = {name: values[name] for name in fields_of(type(self)) if values[name] is not None}
        return json.loads(json.dumps(present, default=str, allow_nan=False))

    def changed_values(self) -> Values:
        """Return the JSON values that differ from their defaults."""
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in fields_of(type(self)).items()
        }
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}

    def to_yaml(self, names: Collection[str] | None = None) -> str:
        """Return the request as YAML, which `read_yaml` reads.

        Args:
            names: The fields to write; all that are not None if None.
        """
        import yaml  # only those who write YAML wait for it

        _, dumper = _yaml_schema()
        values = {name: value for name, value in self.to_dict().items() if names is None or name in names}
        # PyYAML writes this one letter unescaped, and reads it as a line break.
        is_readable = "\x85" not in json.dumps(values, ensure_ascii=False)
        return yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=is_readable)


_Class = TypeVar("_Class", bound=type[Request])


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def request_class(cls: _Class) -> _Class:
    """Decorator: make a frozen dataclass that pydantic checks, and whose faults are `SpecError`s."""
    checked_class: Any = pydantic_dataclass(cls, frozen=True, kw_only=True, config=_CONFIG)
    check = checked_class.__init__

    @wraps(check)
    def construct(self: Request, /, **values: Any) -> None:
        try:
            check(self, **values)
        except ValidationError as error:
            raise explain_fault(type(self), error) from error

    checked_class.__init__ = construct
    return checked_class


def fields_of(cls: type[Request]) -> dict[str, FieldInfo]:
    """Return the fields of a request by name, section by section."""
    fields: dict[str, FieldInfo] = cast(Any, cls).__pydantic_fields__
    return dict(sorted(fields.items(), key=lambda item: cls.sections.index(option_of(item[1]).section)))


def explain_fault(cls: type[Request], error: ValidationError) -> RankfoldError:
    """Return the first fault that validation found in our words: the value that is wrong, then the remedy."""
    fault = cast("Mapping[str, Any]", error.errors()[0])
    original = fault.get("ctx", {}).get("error")
    if isinstance(original, RankfoldError):
        return original
    # Within options by name, each second part of a location is a type that pydantic tried.
    path = (*fault["loc"][:1], *fault["loc"][1::2])
    name, value = ".".join(map(str, path)), fault["input"]
    field = fields_of(cls).get(str(next(iter(fault["loc"]), "")))
    match fault["type"]:
        case "unexpected_keyword_argument":
            return unknown_name(f"option of {cls.title}", name, fields_of(cls))
        case "missing":
            return SpecError(f"{cls.title} needs {_NOUNS.get(name, f'a {name}')}; add --{name}.")
        case "literal_error" if field is not None and isinstance(value, str):
            reason = _NOT_OFFERED.get((name, value))
            return SpecError(reason) if reason else unknown_name(name, value, choices_of(field))
        case _:
            subject, remedy = (
                (cls.title, "its fields by name") if field is None else (name, _allowed_values(field, value))
            )
            return SpecError(f"{subject} is {_quote(value)}; give {remedy}.")


def read_yaml(cls: type[Request], path: Path) -> dict[str, Any]:
    """Return the values that a YAML file gives to a request, by field.

    Raises:
        DataError: If it cannot be read, or is no mapping of names to values.
        SpecError: If it names a field that does not exist, with the nearest one.
    """
    values = _load_yaml(path)
    for name in values:
        if name not in fields_of(cls):
            raise _unknown_setting(cls, path, name)
    return values


def _unknown_setting(cls: type[Request], path: Path, name: str) -> SpecError:
    """Return the error for a field that does not exist; the name of an option suggests its field."""
    flags = {flag_of(field_name, field): field_name for field_name, field in fields_of(cls).items()}
    near = flags.get(f"--{name.replace('_', '-')}") or nearest(name, fields_of(cls))
    if near is None:
        return unknown_name(f"setting of '{path}'", name, fields_of(cls))
    return SpecError(f"unknown setting '{name}' of '{path}'. Did you mean '{near}'?")


def option_of(field: FieldInfo) -> Option:
    """Return how the command line offers a field."""
    return next(item for item in field.metadata if isinstance(item, Option))


def flag_of(name: str, field: FieldInfo) -> str:
    """Return the option of a field."""
    return option_of(field).flag or f"--{name.replace('_', '-')}"


def value_type(field: FieldInfo) -> type:
    """Return the class of a field's values, without None: `dict` for options by name, `str` for choices."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(item for item in get_args(annotation) if item is not type(None))
    if get_origin(annotation) is Literal:
        return str
    return dict if get_origin(annotation) is not None else cast(type, annotation)


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the values that a field can have, if they are listed in its type."""
    annotations = [field.annotation, *get_args(field.annotation)]
    return next((get_args(item) for item in annotations if get_origin(item) is Literal), ())


def differences(before: JsonValue, after: JsonValue, name: str = "") -> Iterator[str]:
    """Yield the differences of two JSON values by their path: "options.r was 4 and is 8"."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif before != after:
        yield f"{name} was {json.dumps(before)} and is {json.dumps(after)}"


def quote_differences(changes: Sequence[str]) -> str:
    """Return the first few differences as one text, and how many more there are."""
    remaining = len(changes) - _LISTED_DIFFERENCES
    return ", ".join(changes[:_LISTED_DIFFERENCES]) + (f", and {remaining} more" if remaining > 0 else "")


# Messages


def _quote(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _allowed_values(field: FieldInfo, value: object) -> str:
    """Return the values that a field can have, in words."""
    kind = value_type(field)
    is_infinite = isinstance(value, float) and not isfinite(value)
    if choices := choices_of(field):
        return f"one of {', '.join(choices)}"
    if kind in (int, float):
        number = "a whole number" if kind is int else "a finite number" if is_infinite else "a number"
        return f"{number} {_range(field)}".rstrip()
    if kind is dict and is_infinite:
        return "a finite number"
    return {bool: "true or false", dict: "values by name, as JSON has them"}.get(kind, "a text")


def _range(field: FieldInfo) -> str:
    return ", ".join(
        f"{words} {getattr(item, bound)}"
        for item in field.metadata
        for bound, words in _BOUNDS.items()
        if hasattr(item, bound)
    )


# YAML


def _load_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        loader, _ = _yaml_schema()
        values = yaml.load(path.read_text("utf-8"), Loader=loader)  # noqa: S506 (a safe loader)
    except FileNotFoundError as error:
        raise DataError(f"there is no '{path}'; name a YAML file, as --print-config prints one.") from error
    except (OSError, ValueError, KeyError, RecursionError, yaml.YAMLError) as error:
        # The library lets through the faults of a tag that does not fit, such as !!int on a word.
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"cannot read '{path}' ({reason}); correct it.") from error
    if not isinstance(values, dict):
        raise DataError(f"'{path}' holds no names with values; write lines such as `method: lora`.")
    return {str(name): value for name, value in cast("dict[object, Any]", values).items()}


@cache
def _yaml_schema() -> tuple[Any, Any]:
    """Return a loader and a dumper of YAML that take JSON's numbers and words as such, and all else as text.

    By the older YAML of PyYAML `1e-3` would be a text, `no` a truth value and `1:30` a number.
    """
    import yaml

    schemas: list[Any] = []
    for base in (yaml.SafeLoader, yaml.SafeDumper):
        schema: Any = type(base.__name__, (base,), {"yaml_implicit_resolvers": {}})
        for tag, pattern in _SCALARS.items():
            schema.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), None)
        schemas.append(schema)
    loader, dumper = schemas
    loader.add_constructor("tag:yaml.org,2002:map", _construct_unique)
    return loader, dumper


def _construct_unique(loader: Any, node: Any) -> Iterator[dict[Any, Any]]:
    """Yield a mapping of YAML, of which the library would keep the last of equal names."""
    names = [key.value for key, _ in node.value]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"'{twice}' is there twice, in what begins in line {node.start_mark.line + 1}")
    yield from loader.construct_yaml_map(node)
