"""A suite as a TOML file: read strictly, one profile of it, with sweeps written out."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from rankfold.bench.statistics.claims import Claim, Expect, Rules
from rankfold.bench.suites.search import Sampler, Space, Tuning
from rankfold.bench.suites.suite import DEFAULT_SEEDS, METHOD_KEYS, Suite, Variant
from rankfold.errors import SpecError, nearest, unknown_name
from rankfold.presets import recommend
from rankfold.runs.methods import find_method
from rankfold.runs.records import value_text
from rankfold.runs.request import overlay


class ReadSettings(Protocol):
    """Turns texts such as "r=8" into values by name."""

    def __call__(self, settings: Sequence[str], /) -> Mapping[str, Any]:
        """Return the values."""
        ...


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _MethodEntry(BaseModel):
    # What else it has are settings of `METHOD_KEYS`, which the suite checks by name.
    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    options: dict[str, JsonValue] = Field(default_factory=dict)
    sweep: dict[str, list[JsonValue]] = Field(default_factory=dict)
    tune: dict[str, Any] | Literal[False] | None = None
    tasks: list[str] = []
    profiles: list[str] = []


class _TuningEntry(_Strict):
    space: dict[str, Any]
    sampler: Sampler = "grid"
    trials: int | None = None
    seed: int = 0
    base: dict[str, Any] = Field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    shared: list[str] = []


class _ClaimEntry(_Strict):
    """A claim in the file, before its comparisons are written out."""

    id: str
    source: str
    text: str
    expect: Expect
    compare: list[list[str]] = Field(min_length=1)
    each: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = Field(default_factory=dict)
    margin: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    tasks: list[str] = Field(default_factory=list)
    profiles: list[str] = []


class _RulesEntry(_Strict):
    margin: float = Field(default=Rules().margin, gt=0.0, allow_inf_nan=False)
    tasks: Literal["mean", "each"] = Rules().tasks


class _Profile(_Strict):
    """A profile: values that replace those of the suite, or of an earlier profile it is `like`."""

    like: str | None = None
    seeds: list[int] | None = None
    base: dict[str, JsonValue] = Field(default_factory=dict)
    options: dict[str, JsonValue] = Field(default_factory=dict)
    tasks: dict[str, dict[str, JsonValue]] | None = None
    models: list[str] | None = None
    tuning: _TuningEntry | Literal[False] | None = None
    methods: list[_MethodEntry] | None = None
    claims: list[_ClaimEntry] | None = None
    rules: _RulesEntry | None = None


class _File(_Strict):
    """The TOML file, before it is a suite."""

    name: str
    description: str = ""
    seeds: list[int] = list(DEFAULT_SEEDS)
    base: dict[str, JsonValue] = Field(default_factory=dict)
    # Of every method that does not say otherwise.
    options: dict[str, JsonValue] = Field(default_factory=dict)
    tasks: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    models: list[str] = Field(default_factory=list)
    tuning: _TuningEntry | None = None
    methods: list[_MethodEntry]
    claims: list[_ClaimEntry] = []
    rules: _RulesEntry = _RulesEntry()
    profiles: dict[str, _Profile] = Field(default_factory=dict)


_TABLES: Mapping[str | int, type[BaseModel]] = {
    "profiles": _Profile,
    "tuning": _TuningEntry,
    "claims": _ClaimEntry,
    "rules": _RulesEntry,
}


def packaged_suites() -> list[str]:
    """Return the names of the suites that come with rankfold."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in (files("rankfold.bench.suites") / "packaged").iterdir()
        if entry.name.endswith(".toml")
    )


def read_suite(name: str, profile: str | None = None) -> Suite:
    """Read one profile of a suite.

    Args:
        name: The name of a packaged suite, or the path of a TOML file.
        profile: One of the profiles of the file; the first if None.

    Raises:
        SpecError: If there is none of this name, or it is not valid; all faults of a file are named at once.
    """
    try:
        read = _File.model_validate(tomllib.loads(_text(name)))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"the suite '{name}' is not TOML ({error}); correct it.") from error
    except ValidationError as error:
        raise SpecError(f"the suite '{name}' is not valid ({_faults(error)}); correct it.") from error
    read = _apply_profile(read, profile)
    methods = tuple(
        method
        for index, entry in enumerate(read.methods)
        for method in _expand_entry(entry, index, read.options)
    )
    suite = Suite(
        read.name,
        read.base,
        methods,
        tuple(read.seeds),
        read.description,
        read.tasks,
        tuple(read.models),
        read.tuning and _tuning(read.tuning),
        rules=Rules(read.rules.margin, read.rules.tasks),
    )
    suite = _center_ladders(suite)
    tuning_tasks = (*suite.tuning.tasks, *suite.tuning.shared) if suite.tuning else ()
    _check_tasks("the tuning", tuning_tasks, suite)
    for method in suite.methods:
        _check_tasks(f"the method '{method.name}'", method.tasks, suite)
        if suite.tuning and (space := suite.tuning.space if method.space is None else method.space):
            suite.tuning.trials_of(space)  # refuses what cannot be searched
    return _with_claims(suite, read.claims)


def _check_tasks(owner: str, tasks: Iterable[str], suite: Suite) -> None:
    for task in tasks:
        if task not in suite.tasks:
            raise unknown_name(f"task of {owner}", task, suite.tasks)


def parse_method(words: str, parse: ReadSettings) -> Variant:
    """Read a method as it is written on the command line, such as "lora r=16 learning_rate=1e-4".

    Args:
        words: The method's name, then options and settings.
        parse: Turns `key=value` texts into a dictionary.

    Raises:
        SpecError: If there is no name or a setting cannot be read.
    """
    if not words.strip():
        raise SpecError(f"the method '{words}' has no name; write it as 'lora r=8'.")
    name, *settings = words.split()
    values = dict(parse(settings))
    rate = values.get("learning_rate", 0.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise SpecError(f"learning_rate={rate} of method '{name}' is not a number; write it as 5e-4.")
    if "learning_rate" in values:
        values["learning_rate"] = float(rate)
    return Variant(name).with_values(values)


def _text(name: str) -> str:
    if name in packaged_suites():
        return (files("rankfold.bench.suites") / "packaged" / f"{name}.toml").read_text("utf-8")
    if Path(name).is_file():
        try:
            return Path(name).read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SpecError(f"the suite '{name}' is not UTF-8 ({error}); save it as UTF-8.") from error
    if name.endswith(".toml"):
        raise SpecError(f"there is no suite file '{name}'; check the path.")
    raise unknown_name("suite", name, packaged_suites())


def _apply_profile(file: _File, profile: str | None) -> _File:
    """Return the file with the values of a profile."""
    _check_entries(file)
    if not file.profiles:
        if profile is not None:
            raise SpecError(f"the suite '{file.name}' has no profiles; leave --profile out.")
        return file
    if profile is not None and profile not in file.profiles:
        raise unknown_name(f"profile of the suite '{file.name}'", profile, file.profiles)
    name = profile or next(iter(file.profiles))
    merged = file.model_copy(update=_profile_values({"base": file.base, "options": file.options}, file, name))
    methods = [entry for entry in merged.methods if not entry.profiles or name in entry.profiles]
    claims = [entry for entry in merged.claims if not entry.profiles or name in entry.profiles]
    return merged.model_copy(update={"methods": methods, "claims": claims, "tuning": merged.tuning or None})


def _profile_values(settings: Mapping[str, Any], read: _File, name: str) -> dict[str, Any]:
    """Return the settings as a profile changes them, after the one that it is like."""
    own_profile = read.profiles[name]
    if own_profile.like is not None:
        earlier = list(read.profiles)[: list(read.profiles).index(name)]
        if own_profile.like not in earlier:
            raise unknown_name(
                f"profile of those above '{name}', which is like it", own_profile.like, earlier
            )
        settings = _profile_values(settings, read, own_profile.like)
    own_settings = {key: getattr(own_profile, key) for key in own_profile.model_fields_set - {"like"}}
    return {
        **settings,
        **own_settings,
        "base": overlay(settings["base"], own_profile.base),
        "options": {**settings["options"], **own_profile.options},
    }


def _check_entries(read: _File) -> None:
    """Check the names in profiles and methods, which would otherwise be ignored."""
    for name in read.profiles:
        _profile_values({"base": {}, "options": {}}, read, name)
    profile_entries = [entry for profile in read.profiles.values() for entry in profile.methods or ()]
    is_tuned = read.tuning or any(profile.tuning for profile in read.profiles.values())
    for claim in read.claims:
        _check_profiles(f"the claim '{claim.id}'", claim.profiles, read)
    for entry in (*read.methods, *profile_entries):
        _check_profiles(f"the method '{entry.name}'", entry.profiles, read)
        if entry.tune and not is_tuned:
            raise SpecError(
                f"the method '{entry.name}' gives a tuning space, and the suite '{read.name}' tunes nothing; "
                "add [tuning], or leave tune out."
            )


def _check_profiles(owner: str, profiles: Iterable[str], read: _File) -> None:
    for profile in profiles:
        if profile not in read.profiles:
            raise unknown_name(f"profile of {owner}", profile, read.profiles)


def _expand_entry(
    entry: _MethodEntry, index: int, suite_options: Mapping[str, JsonValue]
) -> Iterator[Variant]:
    """Yield the variants of one entry: one, or all combinations of its sweep."""
    space: Space | None = {} if entry.tune is False else entry.tune
    settings = entry.model_extra or {}
    for key in settings:
        if key not in METHOD_KEYS:
            raise unknown_name(f"setting of the method '{entry.name}'", key, METHOD_KEYS)
    options = {**(suite_options if find_method(entry.name).trains_adapter else {}), **entry.options}
    method = Variant(entry.name, options, settings, index, space, tuple(entry.tasks))
    for key, values in entry.sweep.items():
        if not values:
            raise SpecError(f"the sweep of '{key}' of method '{entry.name}' is empty; give it values.")
    for values in product(*entry.sweep.values()):
        yield method.with_values(dict(zip(entry.sweep, values, strict=True)))


def _tuning(entry: _TuningEntry) -> Tuning:
    return Tuning(
        entry.space, entry.sampler, entry.trials, entry.seed, entry.base, entry.tasks, tuple(entry.shared)
    )


def _recommended_rate(method: Variant) -> float:
    """Return the rate that the table of recipes has for a method with its options."""
    return recommend(method.name, options=method.options).learning_rate


def _center_ladders(suite: Suite) -> Suite:
    """Return the suite with a centre for every ladder of rates: that of the method if none is given."""
    tuning = suite.tuning
    if tuning is None or tuning.sampler != "ladder":
        return suite
    return replace(
        suite,
        methods=tuple(
            replace(
                method,
                space={
                    name: {"center": _recommended_rate(method), **values}
                    if name == "learning_rate" and isinstance(values, Mapping)
                    else values
                    for name, values in (tuning.space if method.space is None else method.space).items()
                },
            )
            for method in suite.methods
        ),
    )


def _faults(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'suite'}: "
        f"{_unknown(fault['loc']) if fault['type'] == 'extra_forbidden' else fault['msg']}"
        for fault in error.errors()
    )


def _unknown(location: tuple[str | int, ...]) -> str:
    """Describe an unknown key of a table, with the nearest known one."""
    *tables, name = location
    table = next((_TABLES[table_name] for table_name in reversed(tables) if table_name in _TABLES), _File)
    near = nearest(str(name), table.model_fields)
    return f"unknown, did you mean '{near}'?" if near else "unknown"


_WITH_MARGIN = ("not inferior", "equivalent")


def _with_claims(suite: Suite, entries: Sequence[_ClaimEntry]) -> Suite:
    """Return the suite with its claims, each row that they name being one of the suite's.

    Raises:
        SpecError: If a claim names a task or a row that is not there, compares too few rows or too many, or a
            row with itself, or has values that no row takes.
    """
    return replace(suite, claims=tuple(_claim(suite, entry) for entry in entries))


def _claim(suite: Suite, entry: _ClaimEntry) -> Claim:
    for task in entry.tasks:
        if task not in suite.tasks:
            raise unknown_name(f"task of the claim '{entry.id}'", task, suite.tasks)
    for name in entry.each:
        if not any(f"{{{name}}}" in row for template in entry.compare for row in template):
            raise SpecError(
                f"each of the claim '{entry.id}' has '{name}', but no row has {{{name}}}; "
                "write that into a row, or leave the values out."
            )
    # A comparison without such a field is the same for each value, and counts once.
    comparisons = dict.fromkeys(
        tuple(_label(suite, entry.id, row) for row in rows)
        for template in entry.compare
        for rows in _written_out(template, entry)
    )
    _check(entry, comparisons)
    margin = entry.margin
    if margin is None:
        margin = suite.rules.margin if suite.rules and entry.expect in _WITH_MARGIN else 0.0
    return Claim(
        entry.id, entry.source, entry.text, entry.expect, tuple(comparisons), margin, tuple(entry.tasks)
    )


def _check(entry: _ClaimEntry, comparisons: Iterable[Sequence[str]]) -> None:
    """Check that every comparison has enough distinct rows."""
    fewest = 3 if entry.expect == "rising" else 2
    for rows in comparisons:
        if len(rows) < fewest or (entry.expect != "rising" and len(rows) > fewest):
            raise SpecError(
                f"a comparison of the claim '{entry.id}' has {len(rows)} rows; '{entry.expect}' takes "
                f"{fewest}{' or more' if entry.expect == 'rising' else ''}."
            )
        if twice := next((row for row in rows if rows.count(row) > 1), None):
            raise SpecError(
                f"a comparison of the claim '{entry.id}' has the row '{twice}' twice; name another one."
            )


def _written_out(template: Sequence[str], entry: _ClaimEntry) -> Iterator[list[str]]:
    """Yield the comparisons of a template: a comparison for each value, or along them if it is `rising`."""
    choices = [dict(zip(entry.each, values, strict=True)) for values in product(*entry.each.values())]
    if entry.expect == "rising":
        yield list(dict.fromkeys(_fill_template(row, values) for row in template for values in choices))
    else:
        yield from ([_fill_template(row, values) for row in template] for values in choices)


def _fill_template(row: str, values: Mapping[str, JsonValue]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: str(values.get(match[1], match[0])), row)


def _label(suite: Suite, claim: str, words: str) -> str:
    """Return the label of the one row that words such as "lora r=8" name.

    Raises:
        SpecError: If they name none, or several.
    """
    if words in suite.labels():
        return words
    name, *settings = words.split() or [""]
    settings_named = {key: value for key, _, value in (setting.partition("=") for setting in settings)}
    labels: list[str] = [
        label
        for method, label in zip(suite.methods, suite.labels(), strict=True)
        if method.name == name
        and all(text in _texts(method).get(key, ()) for key, text in settings_named.items())
    ]
    if len(labels) != 1:
        label_list = ", ".join(f"'{label}'" for label in labels or suite.labels())
        raise SpecError(
            f"'{words}' of the claim '{claim}' names {'several rows' if labels else 'no row'} of the suite "
            f"'{suite.name}'; name one of {label_list}."
        )
    return labels[0]


def _texts(method: Variant) -> dict[str, tuple[str, str]]:
    """Return the two ways to write each value of a method: as TOML has it, and as labels have it."""
    return {key: (str(value), value_text(value)) for key, value in method.label_values().items()}
