"""Published methods, as values: a file each, found without being listed anywhere.

Other packages add presets through the entry point group `rankfold.presets`, and make them of the names here.
"""

import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from types import MappingProxyType

from rankfold.errors import RankfoldWarning, SpecError, unknown_name
from rankfold.presets._preset import Alpha, Dropout, Heads, Option, Preset, Rank, Reading, Seed, balance


@cache
def discover() -> Mapping[str, Preset]:
    """Return every preset by name: this package's files, then those of other packages.

    A preset of another package that cannot be loaded is left out with a warning: the others are not to blame.

    Raises:
        SpecError: If two presets have one name.
    """
    modules = (module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    found: list[Preset] = [import_module(f"{__name__}.{name}").PRESET for name in modules]
    found += filter(None, map(_loaded, entry_points(group="rankfold.presets")))
    presets: dict[str, Preset] = {}
    for preset in found:
        if preset.name in presets:
            raise SpecError(f"two presets are named '{preset.name}'; rename one of them.")
        presets[preset.name] = preset
    return MappingProxyType(presets)


def _loaded(entry: EntryPoint) -> Preset | None:
    try:
        preset: Preset = entry.load()
        _ = preset.options  # which are read off what its author wrote
    except Exception as error:  # whatever another package may raise
        warnings.warn(
            f"the preset '{entry.name}' of {entry.value} is left out ({type(error).__name__}: {error}); "
            "mend or uninstall its package.",
            RankfoldWarning,
            stacklevel=4,
        )
        return None
    return preset


def find(name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        SpecError: If there is none, with the nearest name.
    """
    if name not in discover():
        raise unknown_name("method", name, discover())
    return discover()[name]


__all__ = [
    "Alpha",
    "Dropout",
    "Heads",
    "Option",
    "Preset",
    "Rank",
    "Reading",
    "Seed",
    "balance",
    "discover",
    "find",
]
