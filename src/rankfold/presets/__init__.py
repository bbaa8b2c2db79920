"""Published methods, as values: a file each, found without being listed anywhere.

Other packages add presets through the entry point group `rankfold.presets`, and make them of the names here.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from rankfold.adapter.router import RouterSpec
from rankfold.errors import unknown_name
from rankfold.plugins import discover_plugins
from rankfold.presets._preset import Alpha, Dropout, Heads, Option, Preset, Rank, Reading, Seed, balance
from rankfold.presets._recipes import OTHER_RECIPE, RECIPES, Recipe, find_recipe


@cache
def discover() -> Mapping[str, Preset]:
    """Return every preset by name: this package's files, then those of other packages.

    A preset of another package that cannot be loaded is left out with a warning.

    Raises:
        SpecError: If two presets have one name.
    """
    return discover_plugins(__name__, "PRESET", "rankfold.presets", "preset", _check)


def _check(preset: Preset) -> None:
    _ = preset.options  # which are read off its author's function


def find(name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        SpecError: If there is none, with the nearest name.
    """
    if name not in discover():
        raise unknown_name("method", name, discover())
    return discover()[name]


def recommend(method: str, *, options: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recommended values of a method: its entry in the table, or its preset's own rate.

    Args:
        method: A preset, `head_only`, `full`, or a method of PEFT as `peft:` and its name.
        options: Options of the method, where its rate depends on them.
    """
    recipe = find_recipe(method, options or {})
    if recipe is None and method in discover():
        preset = discover()[method]
        return replace(OTHER_RECIPE, learning_rate=preset.learning_rate, targets=preset.targets)
    return recipe or OTHER_RECIPE


def router_types() -> Mapping[str, type[RouterSpec]]:
    """Return the types of routers by `kind`: the softmax router, and those that single presets have."""
    types = {RouterSpec, *(preset.router_type for preset in discover().values())}
    return {spec_type().kind: spec_type for spec_type in types}


__all__ = [
    "OTHER_RECIPE",
    "RECIPES",
    "Alpha",
    "Dropout",
    "Heads",
    "Option",
    "Preset",
    "Rank",
    "Reading",
    "Recipe",
    "Seed",
    "balance",
    "discover",
    "find",
    "recommend",
    "router_types",
]
