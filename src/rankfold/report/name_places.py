"""Names beside the points of a chart: short, and where they neither cover each other nor leave the chart."""

from collections.abc import Sequence
from dataclasses import dataclass

# Of the chart and of its letters, in pixels; the page may draw it wider, which only leaves more room.
HEIGHT = 320
_LETTER, _LINE = 6.6, 15
_MARGIN, _GAP, _RISE = 30, 9, 9


@dataclass(frozen=True, slots=True)
class NamePlace:
    """Where a name begins or ends beside its point: `align` is "left" or "right", `rise` in pixels, down."""

    align: str
    rise: int


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def place_names(
    names: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    *,
    ends: tuple[float, float],
    width: float,
) -> list[NamePlace | None]:
    """Return a place for each name, the first having the choice; None for a name that has no room.

    Args:
        names: What is written.
        x: Places of the points across the chart, in any linear unit.
        y: Places up the chart, in any linear unit.
        ends: Of the chart, in the unit of `y`.
        width: Of the chart, in pixels.
    """
    across = [_scaled(value, min(x), max(x), _MARGIN, width - _MARGIN) for value in x]
    down = [_scaled(value, ends[1], ends[0], 0, HEIGHT) for value in y]
    taken = [_Box(left - 5, left + 5, top - 5, top + 5) for left, top in zip(across, down, strict=True)]
    places: list[NamePlace | None] = []
    for name, left, top in zip(names, across, down, strict=True):
        found: NamePlace | None = None
        for place in (NamePlace(align, rise) for rise in (-_RISE, _RISE + 6) for align in ("left", "right")):
            box = _box(place, left, top, _LETTER * len(name))
            if box.left >= 0 and box.right <= width and not any(box.meets(other) for other in taken):
                taken.append(box)
                found = place
                break
        places.append(found)
    return places


def _box(place: NamePlace, left: float, top: float, length: float) -> _Box:
    begin = left + _GAP if place.align == "left" else left - _GAP - length
    middle = top + place.rise - _LINE / 4
    return _Box(begin, begin + length, middle - _LINE / 2, middle + _LINE / 2)


def _scaled(value: float, begin: float, end: float, low: float, high: float) -> float:
    return low + (high - low) * ((value - begin) / (end - begin) if begin != end else 0.5)


def short_names(labels: Sequence[str], longest: int) -> list[str]:
    """Return what stands beside points; the tooltip and the legend have the whole labels.

    Labels of one method that are too long leave out the words that they share, and then what does not fit.
    What would then stand beside several points tells nothing and is left out.
    """
    long: dict[str, list[list[str]]] = {}
    for words in (label.split() for label in labels if len(label) > longest):
        long.setdefault(words[0], []).append(words)
    names = [
        label
        if len(label) <= longest
        else _fitting(_without_shared(label.split(), long[label.split()[0]]), longest)
        for label in labels
    ]
    return [name if names.count(name) == 1 else "" for name in names]


def _without_shared(words: Sequence[str], family: Sequence[Sequence[str]]) -> list[str]:
    shared = set(words[1:]).intersection(*family) if len(family) > 1 else set[str]()
    return [word for word in words if word not in shared]


def _fitting(words: Sequence[str], longest: int) -> str:
    """Return as many words as fit, one at least."""
    for count in range(1, len(words)):
        if len(" ".join(words[: count + 1])) > longest:
            return " ".join([*words[:count], "…"])
    return " ".join(words)
