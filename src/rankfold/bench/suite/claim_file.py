"""Claims as a suite file writes them: templates filled in, and the rows that they name found."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Annotated, final

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rankfold.bench.statistics.claims import Claim, Expect
from rankfold.bench.suite.rows import SuiteMethod
from rankfold.bench.suite.suite import Suite
from rankfold.errors import SpecError, unknown_name


@final
class ClaimEntry(BaseModel):
    """A claim in the file, before its comparisons are written out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    source: str
    text: str
    expect: Expect
    compare: list[list[str]] = Field(min_length=1)
    each: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = Field(default_factory=dict)
    margin: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    tasks: list[str] = Field(default_factory=list)


def with_claims(suite: Suite, entries: Sequence[ClaimEntry]) -> Suite:
    """Return the suite with its claims, each row that they name being one of the suite's.

    Raises:
        SpecError: If a claim names a task or a row that is not there, compares too few rows or too many, or a
            row with itself, or has values that no row takes.
    """
    return replace(suite, claims=tuple(_claim(suite, entry) for entry in entries))


def _claim(suite: Suite, entry: ClaimEntry) -> Claim:
    for task in entry.tasks:
        if task not in suite.tasks:
            raise unknown_name(f"task of the claim '{entry.id}'", task, suite.tasks)
    for name in entry.each:
        if not any(f"{{{name}}}" in row for template in entry.compare for row in template):
            raise SpecError(
                f"each of the claim '{entry.id}' has '{name}', but no row has {{{name}}}; "
                "write that into a row, or leave the values out."
            )
    # A comparison without such a place is the same for each value, and counts once.
    comparisons = dict.fromkeys(
        tuple(_label(suite, entry.id, row) for row in rows)
        for template in entry.compare
        for rows in _written_out(template, entry)
    )
    _check(entry, comparisons)
    return Claim(
        entry.id, entry.source, entry.text, entry.expect, tuple(comparisons), entry.margin, tuple(entry.tasks)
    )


def _check(entry: ClaimEntry, comparisons: Iterable[Sequence[str]]) -> None:
    """Check that every comparison has as many rows as it takes, each once, and says within what."""
    if entry.expect == "within" and "margin" not in entry.model_fields_set:
        raise SpecError(
            f"the claim '{entry.id}' expects 'within' without saying within what; "
            "add margin, in units of the metric, such as margin = 0.02."
        )
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


def _written_out(template: Sequence[str], entry: ClaimEntry) -> Iterator[list[str]]:
    """Yield the comparisons of a template: a comparison for each value, or along them if it is `rising`."""
    choices = [dict(zip(entry.each, values, strict=True)) for values in product(*entry.each.values())]
    if entry.expect == "rising":
        yield list(dict.fromkeys(_filled(row, values) for row in template for values in choices))
    else:
        yield from ([_filled(row, values) for row in template] for values in choices)


def _filled(row: str, values: Mapping[str, JsonValue]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), row)


def _label(suite: Suite, claim: str, words: str) -> str:
    """Return the label of the one row that words such as "lora r=8" name.

    Raises:
        SpecError: If they name none, or several.
    """
    if words in suite.labels():
        return words
    name, *settings = words.split() or [""]
    wanted = {key: value for key, _, value in (setting.partition("=") for setting in settings)}
    found: list[str] = [
        label
        for method, label in zip(suite.methods, suite.labels(), strict=True)
        if method.name == name and wanted.items() <= _texts(method).items()
    ]
    if len(found) != 1:
        listed = ", ".join(f"'{label}'" for label in found or suite.labels())
        raise SpecError(
            f"'{words}' of the claim '{claim}' names {'several rows' if found else 'no row'} of the suite "
            f"'{suite.name}'; name one of {listed}."
        )
    return found[0]


def _texts(method: SuiteMethod) -> dict[str, str]:
    return {key: str(value) for key, value in method.told().items()}
