"""Some of many rows, the same ones every time: runs that differ in their seed are to be compared in pairs."""

import random
from collections.abc import Sequence
from typing import TypeVar

_SEED = 0

_Item = TypeVar("_Item")


def drawn(items: Sequence[_Item], count: int) -> Sequence[_Item]:
    """Return `count` of some rows in their order, or all if there are not more."""
    if count >= len(items):
        return items
    generator = random.Random(_SEED)  # noqa: S311 (a sample is no secret)
    return [items[place] for place in sorted(generator.sample(range(len(items)), count))]
