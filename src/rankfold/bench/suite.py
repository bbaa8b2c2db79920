"""A suite: several methods and seeds under one budget, as a TOML file or made on the command line."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from rankfold.bench.label import labels_of, reducer_settings
from rankfold.bench.request import RunRequest
from rankfold.errors import SpecError, unknown_name

# What a suite says by its methods and seeds, or is said where it is run.
_RESERVED = frozenset({"method", "options", "seed", "out", "overwrite"})
BUDGET_KEYS = tuple(each.name for each in fields(RunRequest) if each.name not in _RESERVED)

_HINTS = get_type_hints(RunRequest)


@dataclass(frozen=True, slots=True)
class SuiteMethod:
    """A method of a suite; everything that is not said here is the same for all.

    Args:
        name: A preset's name, or `peft:` and one of PEFT's methods.
        options: The method's options.
        learning_rate: The method's own recommendation if None.
        reducer: The options of a Reducer for this method alone; the suite's if None.
    """

    name: str
    options: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    learning_rate: float | None = None
    reducer: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """Methods and seeds under one budget.

    Args:
        name: What it is called.
        base: Settings of every run: fields of `RunRequest` except method, options, seed and out.
        methods: The methods, the reference first.
        seeds: Every method is trained once with each.
        description: What it shows, in a sentence.
    """

    name: str
    base: Mapping[str, Any]
    methods: tuple[SuiteMethod, ...]
    seeds: tuple[int, ...] = (0,)
    description: str = ""

    def labels(self) -> list[str]:
        """Return a name for each method; methods that differ only in settings name these."""
        entries: list[tuple[str, dict[str, object]]] = []
        for method in self.methods:
            rate: dict[str, object] = (
                {} if method.learning_rate is None else {"learning_rate": method.learning_rate}
            )
            entries.append((method.name, {**method.options, **rate, **reducer_settings(method.reducer)}))
        return labels_of(entries)

    def requests(self, out: Path) -> list[RunRequest]:
        """Return the runs, seed by seed, so that a suite that is stopped early has compared what it ran.

        Args:
            out: The folder that gets a folder `<label>-seed<seed>` for each run.

        Raises:
            SpecError: If a setting is unknown or impossible, a method is there twice, or there is none.
        """
        if not self.methods or not self.seeds:
            raise SpecError(f"the suite '{self.name}' has no methods or no seeds; give at least one of each.")
        labels = self.labels()
        for kind, names in (("method", labels), ("seed", [str(seed) for seed in self.seeds])):
            for name in names:
                if names.count(name) > 1:
                    raise SpecError(
                        f"the {kind} '{name}' is in the suite '{self.name}' twice; keep one of them."
                    )
        return [
            self._request(method, seed, out / f"{_folder_name(label)}-seed{seed}")
            for seed in self.seeds
            for method, label in zip(self.methods, labels, strict=True)
        ]

    def _request(self, method: SuiteMethod, seed: int, out: Path) -> RunRequest:
        rate = {} if method.learning_rate is None else {"learning_rate": method.learning_rate}
        reducer = {} if method.reducer is None else {"reducer": method.reducer}
        budget: dict[str, Any] = {**self.base, **rate, **reducer}
        faults = [fault for key, value in budget.items() if (fault := self._fault(key, value))]
        if "model" not in budget:
            faults.append("model is missing")
        if faults:
            raise SpecError(f"the suite '{self.name}' is not valid ({'; '.join(faults)}); correct it.")
        return RunRequest(**budget, method=method.name, options=dict(method.options), seed=seed, out=out)

    def _fault(self, key: str, value: object) -> str | None:
        """Return what is wrong with one setting."""
        if key not in BUDGET_KEYS:
            raise unknown_name(f"setting of the suite '{self.name}'", key, BUDGET_KEYS)
        try:
            TypeAdapter(_HINTS[key]).validate_python(value, strict=True)
        except ValidationError as error:
            return f"{key}: {error.errors()[0]['msg']}"
        return None


class _MethodEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    options: dict[str, JsonValue] = Field(default_factory=dict)
    learning_rate: float | None = None
    reducer: dict[str, JsonValue] | None = None


class _File(BaseModel):
    """The TOML file, before it is a suite."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    description: str = ""
    seeds: list[int] = Field(default=[0])
    base: dict[str, JsonValue]
    methods: list[_MethodEntry]


def packaged_suites() -> list[str]:
    """Return the names of the suites that come with rankfold."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in (files("rankfold.bench") / "suites").iterdir()
        if entry.name.endswith(".toml")
    )


def read_suite(name: str) -> Suite:
    """Read a suite.

    Args:
        name: The name of a packaged suite, or the path of a TOML file.

    Raises:
        SpecError: If there is none of this name, or it is not valid; all faults of a file are named at once.
    """
    if name in packaged_suites():
        text = (files("rankfold.bench") / "suites" / f"{name}.toml").read_text("utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text("utf-8")
    elif name.endswith(".toml"):
        raise SpecError(f"there is no suite file '{name}'; check the path.")
    else:
        raise unknown_name("suite", name, packaged_suites())
    try:
        read = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"the suite '{name}' is not TOML ({error}); correct it.") from error
    except ValidationError as error:
        raise SpecError(f"the suite '{name}' is not valid ({_faults(error)}); correct it.") from error
    methods = tuple(
        SuiteMethod(entry.name, entry.options, entry.learning_rate, entry.reducer) for entry in read.methods
    )
    return Suite(read.name, read.base, methods, tuple(read.seeds), read.description)


def parse_method(words: str, parse: Any) -> SuiteMethod:
    """Read a method as it is written on the command line, such as "lora r=16 learning_rate=1e-4".

    Args:
        words: The method's name, then settings.
        parse: Turns `key=value` texts into a dictionary.

    Raises:
        SpecError: If there is no name or a setting cannot be read.
    """
    if not words.strip():
        raise SpecError(f"the method '{words}' has no name; write it as 'lora r=8'.")
    name, *settings = words.split()
    options = parse(settings)
    rate = options.pop("learning_rate", None)
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise SpecError(f"learning_rate={rate} of method '{name}' is not a number; write it as 5e-4.")
    return SuiteMethod(name, options, None if rate is None else float(rate))


def _folder_name(label: str) -> str:
    return re.sub(r"[^\w.=,-]+", "_", label)


def _faults(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'suite'}: {fault['msg']}" for fault in error.errors()
    )
