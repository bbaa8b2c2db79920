"""Registries of named values: a package's own files, then the entry points of other packages."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any

from rankfold.errors import RankfoldWarning, SpecError


def discover_plugins(
    package: str, attribute: str, group: str, noun: str, check: Callable[[Any], object] = lambda _: None
) -> Mapping[str, Any]:
    """Return the values of a registry by their `name`.

    A value of another package that cannot be loaded is left out with a warning: the others are not to blame.

    Args:
        package: The package whose files hold one value each; files that begin with `_` hold none.
        attribute: The value's name in each file, such as `PRESET`.
        group: The entry point group of other packages, such as `rankfold.presets`.
        noun: The word for a value in messages, such as "preset".
        check: Raises for a value of another package that cannot be used.

    Raises:
        SpecError: If two values have one name.
    """
    spec = find_spec(package)
    folders = None if spec is None else spec.submodule_search_locations
    modules = (module.name for module in iter_modules(folders) if not module.name.startswith("_"))
    values = [getattr(import_module(f"{package}.{module}"), attribute) for module in modules]
    for entry in entry_points(group=group):
        values += _load(entry, noun, check)
    named: dict[str, Any] = {}
    for value in values:
        if value.name in named:
            raise SpecError(f"two {noun}s are named '{value.name}'; rename one of them.")
        named[value.name] = value
    return MappingProxyType(named)


def _load(entry: EntryPoint, noun: str, check: Callable[[Any], object]) -> list[Any]:
    try:
        value = entry.load()
        check(value)
    except Exception as error:  # whatever another package may raise
        warnings.warn(
            f"the {noun} '{entry.name}' of {entry.value} is left out ({type(error).__name__}: {error}); "
            "mend or uninstall its package.",
            RankfoldWarning,
            stacklevel=5,
        )
        return []
    return [value]
