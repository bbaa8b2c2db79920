"""A suite: several methods, tasks, models and seeds under one budget, as a value."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, cast, final

from pydantic import JsonValue

from rankfold.bench.statistics.claims import Claim, Rules
from rankfold.bench.suites.search import Space, Tuning
from rankfold.errors import SpecError, unknown_name
from rankfold.runs.records import labels_of, reducer_settings
from rankfold.runs.request import METHOD_FIELDS, RunRequest, overlay, without_changed

Settings = Mapping[str, Any]

# What may differ from method to method, because it belongs to how a method is trained; the budget does not.
METHOD_KEYS = METHOD_FIELDS
# Those of them that have options of their own.
_NESTED = ("lr_groups", "reducer")


@final
@dataclass(frozen=True, slots=True)
class Variant:
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

    def with_values(self, values: Settings) -> "Variant":
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

    def label_values(self) -> dict[str, object]:
        """Return options and settings side by side, as a label or a claim names them."""
        label_values: dict[str, object] = dict(self.options)
        for key, value in self.settings.items():
            if key == "reducer":
                label_values |= reducer_settings(value)
            elif isinstance(value, Mapping):
                parts = cast("Settings", value)
                label_values |= {f"{key}.{name}": part for name, part in parts.items()}
            else:
                label_values[key] = value
        return label_values


@final
@dataclass(frozen=True, slots=True)
class Condition:
    """Where runs are compared: one model and one task; empty names stand for those of the suite's base."""

    model: str = ""
    task: str = ""


@final
@dataclass(frozen=True, slots=True)
class LabelledVariant:
    """A method of a suite by its name there.

    Args:
        method: The method.
        label: What tells it from the others.
        search_label: The label of the variant whose search it shares: the first of its entry.
    """

    method: Variant
    label: str
    search_label: str


# What a suite says by its methods and seeds, or is said where it is run.
_RESERVED = frozenset({"method", "options", "seed", "out", "overwrite"})
BUDGET_KEYS = tuple(item.name for item in fields(RunRequest) if item.name not in _RESERVED)

DEFAULT_SEEDS = (0, 1, 2, 3, 4)
"""Where nothing is said. Fewer than three say little of what another seed would have given."""


@final
@dataclass(frozen=True, slots=True)
class Suite:
    """Methods and seeds under one budget.

    Args:
        name: What it is called.
        base: Settings of every run: fields of `RunRequest` except method, options, seed and out.
        methods: The methods, the reference first.
        seeds: Every method is trained once with each.
        description: What it shows, in a sentence.
        tasks: Settings of each task; the task of `base` alone if empty.
        models: The models; that of `base` alone if empty.
        tuning: How learning rates and options are chosen before; as they are given if None.
        claims: The claims that its records are asked.
        rules: How claims and comparisons are decided; None for suites of version 0.1.0, which had no margins.
    """

    name: str
    base: Settings
    methods: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0,)
    description: str = ""
    tasks: Mapping[str, Settings] = field(default_factory=dict[str, Settings])
    models: tuple[str, ...] = ()
    tuning: Tuning | None = None
    claims: tuple[Claim, ...] = ()
    rules: Rules | None = None

    def with_settings(self, settings: Settings) -> "Suite":
        """Return the suite with settings that hold for all of its tasks, methods and trials.

        Args:
            settings: Fields of `RunRequest`; a model or a task replaces all that there are.

        Raises:
            SpecError: If they are what is tuned, or data of one task where there are several.
        """
        spaces = [
            searched.space
            for searched in (self.tuning, *self.methods)
            if searched is not None and searched.space
        ]
        if tuned_keys := sorted({key for space in spaces for key in space} & settings.keys()):
            raise SpecError(f"{tuned_keys[0]} is tuned by the suite '{self.name}'; do not give it as well.")
        names = [settings["task"]] if "task" in settings and self.tasks else list(self.tasks)
        if "data" in settings and len(names) > 1:
            raise SpecError(f"the suite '{self.name}' has {len(names)} tasks; name the task of the data.")
        return replace(
            self,
            base=overlay(self.base, settings),
            methods=tuple(
                replace(method, settings=without_changed(method.settings, settings))
                for method in self.methods
            ),
            tasks={name: without_changed(self.tasks.get(name, {}), settings) for name in names},
            models=(settings["model"],) if "model" in settings and self.models else self.models,
            tuning=self.tuning
            and replace(
                self.tuning,
                base=without_changed(self.tuning.base, settings),
                tasks={
                    name: without_changed(task_settings, settings)
                    for name, task_settings in self.tuning.tasks.items()
                },
            ),
        )

    def labels(self) -> list[str]:
        """Return a name for each method; methods that differ only in settings name these."""
        return labels_of([(method.name, method.label_values()) for method in self.methods])

    def conditions(self) -> list[Condition]:
        """Return every model with every task."""
        return [Condition(*names) for names in product(self.models or ("",), self.tasks or ("",))]

    def variants_at(self, condition: Condition) -> list[LabelledVariant]:
        """Return the variants that are run in a condition."""
        labels = self.labels()
        first: dict[int | None, str] = {}
        for method, label in zip(self.methods, labels, strict=True):
            first.setdefault(method.entry, label)
        return [
            LabelledVariant(method, label, label if method.entry is None else first[method.entry])
            for method, label in zip(self.methods, labels, strict=True)
            if not method.tasks or condition.task in method.tasks
        ]

    def run_name(self, condition: Condition, label: str, end: str) -> str:
        """Return the name of a run's folder; `end` tells the runs of one method apart."""
        return folder_name((Path(condition.model).name, condition.task, label), end)

    def requests(
        self, out: Path, choices: Mapping[tuple[Condition, str], Settings] | None = None
    ) -> list[RunRequest]:
        """Return the runs, seed by seed, so that a suite stopped early has complete comparisons.

        Args:
            out: The folder that gets a folder for each run.
            choices: The values that tuning chose, by condition and label of the variant that was searched.

        Raises:
            SpecError: If a setting is unknown or impossible, a method is there twice, or there is none.
        """
        self._check()
        return [
            self.request(
                condition,
                row.method.with_values((choices or {}).get((condition, row.search_label), {})),
                seed,
                out / self.run_name(condition, row.label, f"seed{seed}"),
            )
            for seed in self.seeds
            for condition in self.conditions()
            for row in self.variants_at(condition)
        ]

    def request(
        self, condition: Condition, method: Variant, seed: int, out: Path, changes: Settings | None = None
    ) -> RunRequest:
        """Return one run of a method.

        Args:
            condition: With which model, on which task.
            method: The method.
            seed: Of head, adapter, order and dropout.
            out: Where it goes.
            changes: Settings that differ from those of the suite.

        Raises:
            SpecError: If a setting is unknown or impossible.
        """
        settings = overlay(self.base, self.tasks.get(condition.task, {}))
        settings |= {"model": condition.model} if condition.model else {}
        settings |= {"task": condition.task} if condition.task else {}
        settings = overlay(settings | dict(method.settings), changes or {})
        for key in settings:
            if key not in BUDGET_KEYS:
                raise unknown_name(f"setting of the suite '{self.name}'", key, BUDGET_KEYS)
        try:
            return RunRequest(
                **settings, method=method.name, options=dict(method.options), seed=seed, out=out
            )
        except SpecError as error:
            raise SpecError(f"the suite '{self.name}' cannot be run: {error}") from error

    def _check(self) -> None:
        if not self.methods or not self.seeds:
            raise SpecError(f"the suite '{self.name}' has no methods or no seeds; give at least one of each.")
        for kind, names in (("method", self.labels()), ("seed", [str(seed) for seed in self.seeds])):
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise SpecError(
                    f"the {kind} '{twice}' is in the suite '{self.name}' twice; keep one of them."
                )
        for condition in self.conditions():
            if not self.variants_at(condition):
                raise SpecError(
                    f"no method of the suite '{self.name}' is run on '{condition.task}'; choose another task."
                )
        self._check_folders()

    def _check_folders(self) -> None:
        """Check that no two rows have one folder, of whose runs only the first would be made."""
        folders: dict[str, str] = {}
        for condition in self.conditions():
            for row in self.variants_at(condition):
                # Not every file system tells "a" from "A".
                name = self.run_name(condition, row.label, "seed").casefold()
                owner = " ".join(part for part in (condition.model, condition.task, row.label) if part)
                if name in folders:
                    raise SpecError(
                        f"'{folders[name]}' and '{owner}' of the suite '{self.name}' would share folders; "
                        "run them as two suites, or name one of them otherwise."
                    )
                folders[name] = owner


# Bytes of a folder's name before seed or trial. File systems take 255, and `<out>.unfinished` needs some.
_LONGEST = 210


def folder_name(parts: Sequence[str], end: str) -> str:
    """Return a name of its parts, without those that are empty.

    Args:
        parts: What the runs of one method have in common, such as the task; cut with a hash where it is long.
        end: What tells them apart, such as "seed0".
    """
    return f"{_shorten('-'.join(_plain(part) for part in parts if part))}-{_plain(end)}"


def _shorten(name: str) -> str:
    whole = name.encode()
    if len(whole) <= _LONGEST:
        return name
    return f"{whole[:_LONGEST].decode(errors='ignore')}~{sha256(whole).hexdigest()[:8]}"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", text)


def runs_by_name(suite: Suite) -> dict[str, tuple[Condition, str]]:
    """Return the condition and the label of every run by its name, in the order of the suite."""
    return {
        suite.run_name(condition, row.label, f"seed{seed}"): (condition, row.label)
        for condition in suite.conditions()
        for row in suite.variants_at(condition)
        for seed in suite.seeds
    }


def first_trial_names(suite: Suite) -> list[str]:
    """Return the names of the first trials of a suite; a search without its first has no others."""
    return [
        trial_name(suite, condition, row.label, 1)
        for condition in suite.conditions()
        for row in suite.variants_at(condition)
        if row.label == row.search_label
    ]


def trial_name(suite: Suite, condition: Condition, label: str, number: int) -> str:
    """Return the name of a trial of a row."""
    return suite.run_name(condition, label, f"trial{number}")


def model_of(suite: Suite, condition: Condition) -> str:
    """Return the model of a condition; by default the suite's."""
    return condition.model or str(suite.base.get("model", ""))


def task_of(suite: Suite, condition: Condition) -> str:
    """Return the task or the data of a condition; by default the suite's."""
    return condition.task or str(suite.base.get("task") or suite.base.get("data") or "")
