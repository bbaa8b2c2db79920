"""What a suite compares: methods, the places they are run in, and the rows that come of both."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast, final

from pydantic import JsonValue

from rankfold.bench.suite.tuning import Space
from rankfold.runs.records import reducer_settings

Settings = Mapping[str, Any]

# What may differ from method to method, because it belongs to how a method is trained; the budget does not.
METHOD_KEYS = (
    "learning_rate",
    "scheduler",
    "warmup",
    "weight_decay",
    "tlora_ratio",
    "loraplus_ratio",
    "lr_groups",
    "lr_per_module",
    "lr_base_role",
    "freeze_head",
    "reducer",
)
# Those of them that have options of their own.
_NESTED = ("lr_groups", "reducer")


@final
@dataclass(frozen=True, slots=True)
class SuiteMethod:
    """A method of a suite; everything that is not said here is the same for all.

    Args:
        name: A preset's name, or `peft:` and one of PEFT's methods.
        options: The method's options.
        settings: How this method is trained, where that differs from the others: some of `METHOD_KEYS`.
        entry: Which entry of the suite it came of. The methods of one entry differ in what the entry sweeps
            over, and are tuned once, as the first of them.
        space: What is tuned, where it is not what the suite says; nothing if it is empty.
        tasks: The tasks of the suite on which it is run; on all if empty.
    """

    name: str
    options: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    settings: Settings = field(default_factory=dict[str, Any])
    entry: int | None = None
    space: Space | None = None
    tasks: tuple[str, ...] = ()

    def with_values(self, values: Settings) -> "SuiteMethod":
        """Return the method with other values: a key of `METHOD_KEYS` is a setting, any other an option.

        A key with a dot, such as `reducer.active_fraction`, is an option of a setting.
        """
        options, settings = dict(self.options), dict(self.settings)
        for key, value in values.items():
            whole, dot, part = key.partition(".")
            if dot and whole in _NESTED:
                settings[whole] = {**(settings.get(whole) or {}), part: value}
            elif key in METHOD_KEYS:
                settings[key] = value
            else:
                options[key] = value
        return replace(self, options=options, settings=settings)

    def told(self) -> dict[str, object]:
        """Return options and settings side by side, as a label or a claim names them."""
        told: dict[str, object] = dict(self.options)
        for key, value in self.settings.items():
            if key == "reducer":
                told |= reducer_settings(value)
            elif isinstance(value, Mapping):
                parts = cast("Settings", value)
                told |= {f"{key}.{name}": part for name, part in parts.items()}
            else:
                told[key] = value
        return told


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where runs are compared: one model and one task; empty names stand for those of the suite's base."""

    model: str = ""
    task: str = ""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A method of a suite by its name there.

    Args:
        method: The method.
        label: What tells it from the others.
        tuned_as: The label of the method in whose place it is tuned: the first of its entry.
    """

    method: SuiteMethod
    label: str
    tuned_as: str
