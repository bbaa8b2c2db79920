"""The options of a configuration, in their types: a script, a file or the command line may give anything."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_origin

import numpy as np
from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)

from rankfold.adapter.layout import Layout
from rankfold.adapter.router import RouterSpec
from rankfold.errors import SpecError
from rankfold.factors import CoreSpec, FactorSpec

_WHOLE = "a whole number"
_WHOLES = "a whole number, or several as a list"
_NAME = "a name as a text"
_LAYERS = "names as a list, or a regular expression as a text"
_BY_NAME = 'numbers by name, such as {"query": 4}'

# By the type that a field is declared with: what reads its values, and what to give instead.
_VALUES: Mapping[Any, tuple[TypeAdapter[Any], str]] = {
    int: (TypeAdapter(StrictInt), _WHOLE),
    int | None: (TypeAdapter(StrictInt | None), _WHOLE),
    int | tuple[int, ...]: (TypeAdapter(StrictInt | tuple[StrictInt, ...]), _WHOLES),
    float: (TypeAdapter(StrictFloat), "a number"),
    bool: (TypeAdapter(StrictBool), "true or false"),
    str: (TypeAdapter(StrictStr), _NAME),
    # A set of any collection, since a configuration that is read from a file has lists.
    Collection[str] | str | None: (TypeAdapter(set[StrictStr] | StrictStr | None), _LAYERS),
    list[int] | int | None: (TypeAdapter(list[StrictInt] | StrictInt | None), "whole numbers of blocks"),
    list[str] | str | None: (TypeAdapter(list[StrictStr] | StrictStr | None), "names of lists of blocks"),
    list[str] | None: (TypeAdapter(list[StrictStr] | None), "names as a list"),
    dict[str, int]: (TypeAdapter(dict[StrictStr, StrictInt]), _BY_NAME),
    dict[str, float]: (TypeAdapter(dict[StrictStr, StrictFloat]), _BY_NAME),
    str | None: (TypeAdapter(StrictStr | None), _NAME),
    Layout | None: (TypeAdapter(dict[StrictStr, list[StrictStr]] | None), "what was saved"),
}

_STRICT = ConfigDict(extra="forbid", strict=True)
_KIND = Field(discriminator="kind")
_FACTOR = ("factor", "DenseSpec()")

# Likewise for specs: what reads one, what it describes, and an example.
_SPECS: Mapping[Any, tuple[TypeAdapter[Any], str, str]] = {
    FactorSpec: (TypeAdapter(Annotated[FactorSpec, _KIND], config=_STRICT), *_FACTOR),
    CoreSpec | None: (TypeAdapter(Annotated[CoreSpec | None, _KIND], config=_STRICT), *_FACTOR),
    RouterSpec | None: (TypeAdapter(RouterSpec | None, config=_STRICT), "router", "RouterSpec()"),
}


def read_options(options: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in the types they are declared with; collections of layer names become sets.

    Args:
        options: All fields of a configuration.
        hints: The types of those to read, by name.

    Raises:
        SpecError: If a value is of another type, or a regular expression cannot be read.
    """
    read = {name: _read(name, options[name], hint) for name, hint in hints.items()}
    for name in ("target_modules", "exclude_modules"):
        if isinstance(read[name], str):
            _check_expression(name, read[name])
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in read[name]:
            _check_expression(name, pattern)
    return read


def _read(name: str, value: Any, hint: Any) -> Any:
    if hint in _SPECS:
        return _read_spec(name, value, *_SPECS[hint])
    if isinstance(value, np.generic):
        value = value.item()  # as of a sweep over an array; a file could not hold numpy's own types
    # Names are compared with the known ones by the spec, which has suggestions.
    reader, wanted = _VALUES[str if get_origin(hint) is Literal else hint]
    try:
        return reader.validate_python(value)
    except ValidationError as error:
        raise SpecError(f"{name}={value!r} cannot be read; give {wanted}.") from error


def _read_spec(name: str, value: Any, reader: TypeAdapter[Any], what: str, example: str) -> Any:
    """Return a spec from a spec or from what a file says of it."""
    try:
        # Strict reading takes dictionaries from JSON only, which is where they come from.
        return (
            reader.validate_json(json.dumps(value))
            if isinstance(value, dict)
            else reader.validate_python(value)
        )
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'value'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise SpecError(
            f"{name}={value!r} describes no {what} ({faults}); give a spec such as {example}."
        ) from error


def _check_expression(option: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SpecError(
            f"{option} has '{pattern}', which is no regular expression ({error}); correct it."
        ) from error
