"""Numbers, intervals, sizes and durations as text, the same on the terminal, in Markdown and in HTML."""

from collections.abc import Sequence

from rankfold.bench.statistics.comparison import Interval


def metric_name(metric: str) -> str:
    """Return the name of a metric in prose: "macro_f1" is "macro F1"."""
    return {"f1": "F1", "macro_f1": "macro F1", "matthews": "Matthews correlation"}.get(
        metric, metric.replace("_", " ")
    )


def capital(text: str) -> str:
    """Return a text with its first letter large: "Macro F1"."""
    return text[:1].upper() + text[1:]


def score_text(interval: Interval | None) -> str:
    """Return a metric's value, "0.962"."""
    return "–" if interval is None else _decimals(interval.value)


def range_text(interval: Interval | None) -> str:
    """Return the bounds of an interval, "[0.940, 0.976]"; nothing where there is no interval."""
    if interval is None or interval.low == interval.high:
        return ""
    return f"[{_decimals(interval.low)}, {_decimals(interval.high)}]"


def signed_text(value: float) -> str:
    """Return a difference with its sign, "+0.012" or "−0.012"; zero has none."""
    text = _decimals(value)
    return text if text == "0.000" or value < 0 else f"+{text}"


def difference_range(interval: Interval) -> str:
    """Return the bounds of a difference, "[−0.003, +0.021]"."""
    return f"[{signed_text(interval.low)}, {signed_text(interval.high)}]"


def difference_text(interval: Interval) -> str:
    """Return a difference with its bounds: "+0.012 [+0.003, +0.021]", or that there is none.

    Two methods that are right and wrong on the same examples leave nothing to resample: the examples were too
    few or too easy to tell them apart.
    """
    if interval.value == interval.low == interval.high == 0:
        return "the same on every example"
    return f"{signed_text(interval.value)} {difference_range(interval)}"


def bytes_text(count: float) -> str:
    """Return a number of bytes as people read it: "3.1 kB", "22.4 MB" (powers of 1000)."""
    if count < 999.5:  # noqa: PLR2004
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:  # noqa: PLR2004
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def seconds_text(seconds: float) -> str:
    """Return a duration: "0.4 s", "35 s", "12 min 05 s", "3 h 20 min"."""
    if seconds < 9.95:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, remainder = divmod(whole, 60)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{minutes} min {remainder:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def join_names(names: Sequence[str]) -> str:
    """Return names as a list in prose: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def _decimals(value: float) -> str:
    text = f"{abs(value):.3f}"
    return f"−{text}" if value < 0 and text != "0.000" else text
