"""Which records: by base, method, tags and metrics, as SQL that the store's indexes answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from rankfold.errors import SpecError

_CONDITION = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=|==|=|>|<)\s*(\S+)\s*")

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


def _parse(condition: str) -> tuple[str, str, float]:
    match = _CONDITION.fullmatch(condition)
    try:
        if match:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    raise SpecError(f"'{condition}' is no condition on a metric; write it like accuracy>=0.9.")
