"""Registries of named values: a package's own files, then the entry points of other packages."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, TypeVar, cast

from rankfold.errors import RankfoldWarning, SpecError

_Value = TypeVar("_Value")


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
    values = [getattr(import_module(f"{package}.{name}"), attribute) for name in file_names(package)]
    for entry in entry_points(group=group):
        values += _load(entry, noun, check)
    named: dict[str, Any] = {}
    for value in values:
        if value.name in named:
            raise SpecError(f"two {noun}s are named '{value.name}'; rename one of them.")
        named[value.name] = value
    return MappingProxyType(named)


def file_names(package: str) -> tuple[str, ...]:
    """Return the names of a package's own values, which are those of their files, without importing any."""
    return tuple(name for name in _module_names(package) if not name.startswith("_"))


def file_values(package: str, attribute: str) -> list[Any]:
    """Return the values of an attribute in the files of a package; files without it are passed over.

    Args:
        package: The name of the package.
        attribute: The name of the value in a file, such as `KIND`.
    """
    modules = [import_module(f"{package}.{name}") for name in _module_names(package)]
    return [getattr(module, attribute) for module in modules if hasattr(module, attribute)]


def _module_names(package: str) -> list[str]:
    spec = find_spec(package)
    return [module.name for module in iter_modules(None if spec is None else spec.submodule_search_locations)]


def find_plugin(
    group: str, name: str, noun: str, value_type: type[_Value], *, is_ours: bool = False
) -> _Value | None:
    """Return another package's value of a name, without loading any other; None if no package has one.

    Args:
        group: The entry point group, such as `rankfold.tasks`.
        name: The name of the entry point and of the value.
        noun: The word for a value in messages, such as "task".
        value_type: The type of the value, which has an attribute `name`.
        is_ours: Whether rankfold has a value of this name.

    Raises:
        SpecError: If two packages have the name, or the value does not load or is not of the type.
    """
    entries = tuple(entry_points(group=group, name=name))
    if not entries:
        return None
    packages = sorted([*(_package(entry) for entry in entries), *(["rankfold"] if is_ours else [])])
    if len(packages) > 1:
        owners = " and ".join(f"'{package}'" for package in packages)
        raise SpecError(f"the packages {owners} both have a {noun} '{name}'; uninstall one of them.")
    package, entry = packages[0], entries[0]
    try:
        value = entry.load()
    except Exception as error:  # whatever another package may raise
        raise SpecError(
            f"the {noun} '{name}' of the package '{package}' does not load "
            f"({type(error).__name__}: {error}); repair or uninstall the package."
        ) from error
    if not isinstance(value, value_type) or cast(Any, value).name != name:
        raise SpecError(
            f"'{entry.value}' of the package '{package}' is no {noun} with the name '{name}'; "
            "repair or uninstall the package."
        )
    return value


def _package(entry: EntryPoint) -> str:
    return "unknown" if entry.dist is None else entry.dist.name


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
