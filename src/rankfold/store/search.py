"""Which records: by base, method, tags and metrics, as SQL that the store's indexes answer."""

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from rankfold.errors import SpecError, unknown_name

_CONDITION = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=|==|=|>|<)\s*(\S+)\s*")

# What each word of a search may be; a kind that no record is of any more does not count.
_KNOWN = {
    "base": "SELECT base AS name FROM kinds JOIN records ON records.kind = kinds.id",
    "method": "SELECT method AS name FROM kinds JOIN records ON records.kind = kinds.id",
    "tag": "SELECT name FROM tags",
    "metric": "SELECT name FROM metrics",
}

Value = str | int | float


@final
@dataclass(frozen=True, slots=True)
class Query:
    """What the records of a search have in common; an empty one finds all.

    Args:
        base: The base model's name.
        method: The preset, or PEFT's name of the method.
        tags: Tags with these values.
        where: Conditions on metrics, such as "accuracy>=0.9"; a record without the metric is not found.
    """

    base: str | None = None
    method: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    where: Sequence[str] = ()

    def to_sql(self) -> tuple[str, list[Value]]:
        """Return a condition on `records` and `kinds`, and the values in it.

        Raises:
            SpecError: If a condition on a metric is none.
        """
        terms: list[str] = []
        values: list[Value] = []
        if self.base is not None:
            terms.append("records.kind IN (SELECT id FROM kinds WHERE base = ?)")
            values.append(self.base)
        if self.method is not None:
            terms.append("records.kind IN (SELECT id FROM kinds WHERE method = ?)")
            values.append(self.method)
        for name, value in self.tags.items():
            terms.append("records.id IN (SELECT record FROM tags WHERE name = ? AND value = ?)")
            values += [name, value]
        for condition in self.where:
            name, sign, number = _parse(condition)
            terms.append(f"records.id IN (SELECT record FROM metrics WHERE name = ? AND value {sign} ?)")
            values += [name, number]
        return " AND ".join(terms) or "1", values

    def check(self, connection: sqlite3.Connection) -> None:
        """Check that what the search names is there, unless the store is empty.

        Raises:
            SpecError: If no record has such a base, method, tag or metric, with the nearest that one has.
        """
        asked = [("base", self.base), ("method", self.method), *(("tag", name) for name in self.tags)]
        asked += [("metric", _parse(condition)[0]) for condition in self.where]
        if not connection.execute("SELECT EXISTS (SELECT 1 FROM records)").fetchone()[0]:
            return
        for kind, name in asked:
            known = f"SELECT DISTINCT name FROM ({_KNOWN[kind]})"
            if name is not None and connection.execute(f"{known} WHERE name = ?", (name,)).fetchone() is None:
                raise unknown_name(
                    f"{kind} of the adapters", name, (each for (each,) in connection.execute(known))
                )


def _parse(condition: str) -> tuple[str, str, float]:
    match = _CONDITION.fullmatch(condition)
    try:
        if match:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    raise SpecError(f"'{condition}' is no condition on a metric; write it like accuracy>=0.9.")
