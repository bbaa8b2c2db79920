"""The options of a configuration, in their types: a script, a file or the command line may give anything."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

from rankfold.errors import SpecError

_WHOLE = "a whole number"
_NAME = "a name as a text"
_LAYERS = "names as a list, or a regular expression as a text"
_BY_NAME = 'numbers by name, such as {"query": 4}'

_READERS: Mapping[str, tuple[TypeAdapter[Any], str]] = {
    "r": (TypeAdapter(StrictInt), _WHOLE),
    "rank_up": (TypeAdapter(StrictInt | None), _WHOLE),
    "alpha": (TypeAdapter(StrictFloat), "a number"),
    "scaling": (TypeAdapter(StrictStr), _NAME),
    "dropout": (TypeAdapter(StrictFloat), "a number"),
    "dropout_position": (TypeAdapter(StrictStr), _NAME),
    "share_down": (TypeAdapter(StrictStr), _NAME),
    "share_up": (TypeAdapter(StrictStr), _NAME),
    "heads": (TypeAdapter(StrictInt | tuple[StrictInt, ...]), "a whole number, or several as a list"),
    "heads_in": (TypeAdapter(StrictStr), _NAME),
    "down_per_head": (TypeAdapter(StrictBool), "true or false"),
    "seed": (TypeAdapter(StrictInt), _WHOLE),
    # A set of any collection, since a configuration that is read from a file has lists.
    "target_modules": (TypeAdapter(set[StrictStr] | StrictStr | None), _LAYERS),
    "exclude_modules": (TypeAdapter(set[StrictStr] | StrictStr | None), _LAYERS),
    "layers_to_transform": (TypeAdapter(list[StrictInt] | StrictInt | None), "whole numbers of blocks"),
    "layers_pattern": (TypeAdapter(list[StrictStr] | StrictStr | None), "names of lists of blocks"),
    "rank_pattern": (TypeAdapter(dict[StrictStr, StrictInt]), _BY_NAME),
    "alpha_pattern": (TypeAdapter(dict[StrictStr, StrictFloat]), _BY_NAME),
    "modules_to_save": (TypeAdapter(list[StrictStr] | None), "names as a list"),
    "init_weights": (TypeAdapter(StrictBool), "true or false"),
    "base_fingerprint": (TypeAdapter(StrictStr | None), "what was saved"),
    "layers": (TypeAdapter(dict[StrictStr, list[StrictStr]] | None), "what was saved"),
}


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in the types they are declared with; collections of layer names become sets.

    Args:
        options: All fields of a configuration. Factors are read elsewhere.

    Raises:
        SpecError: If a value is of another type, or a regular expression cannot be read.
    """
    read: dict[str, Any] = {}
    for name, (reader, wanted) in _READERS.items():
        try:
            read[name] = reader.validate_python(options[name])
        except ValidationError as error:
            raise SpecError(f"{name}={options[name]!r} cannot be read; give {wanted}.") from error
    for name in ("target_modules", "exclude_modules"):
        if isinstance(read[name], str):
            _check_expression(name, read[name])
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in read[name]:
            _check_expression(name, pattern)
    return read


def _check_expression(option: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SpecError(
            f"{option} has '{pattern}', which is no regular expression ({error}); correct it."
        ) from error
