"""Numbers and findings in words, the same on the terminal, in Markdown and in HTML."""

from collections.abc import Sequence

from rankfold.bench.statistics.stats import Interval
from rankfold.report.choice import CHOSEN
from rankfold.report.rows import Row
from rankfold.report.study import Study

# Of more rows than these, the finding is told of all together, or their number alone.
_MOST_SENTENCES, _MOST_NAMES = 3, 6


def metric_name(metric: str) -> str:
    """Return a metric as it is written in prose: "macro_f1" is "macro F1"."""
    return {"f1": "F1", "macro_f1": "macro F1", "matthews": "Matthews correlation"}.get(
        metric, metric.replace("_", " ")
    )


def capital(text: str) -> str:
    """Return a text with its first letter large: "Macro F1"."""
    return text[:1].upper() + text[1:]


def score_text(interval: Interval | None) -> str:
    """Return a metric's value, "0.962"."""
    return "–" if interval is None else _rounded(interval.value)


def range_text(interval: Interval | None) -> str:
    """Return the bounds of an interval, "[0.940, 0.976]"; nothing where there is no interval."""
    if interval is None or interval.low == interval.high:
        return ""
    return f"[{_rounded(interval.low)}, {_rounded(interval.high)}]"


def signed(value: float) -> str:
    """Return a difference with its sign, "+0.012" or "−0.012"; zero has none."""
    text = _rounded(value)
    return text if text == "0.000" or value < 0 else f"+{text}"


def difference_range(interval: Interval) -> str:
    """Return the bounds of a difference, "[−0.003, +0.021]"."""
    return f"[{signed(interval.low)}, {signed(interval.high)}]"


def difference_text(interval: Interval) -> str:
    """Return a difference with its bounds: "+0.012 [+0.003, +0.021]"; without doubt of it, in words.

    Two methods that are right and wrong on the same examples leave nothing to resample, which says only that
    the examples were too few or too easy to tell them apart.
    """
    if interval.value == interval.low == interval.high == 0:
        return "the same on every example"
    return f"{signed(interval.value)} {difference_range(interval)}"


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
    minutes, rest = divmod(whole, 60)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def seeds_text(row: Row) -> str:
    """Return how many runs ended well, and how many did not: "3", "2 of 3", "0 of 1"."""
    done, failed = len(row.records), len(row.failures)
    return f"{done} of {done + failed}" if failed else str(done)


def verdict_text(row: Row) -> str:
    """Return what a row's difference says, with a shape: "▲ better"; "failed" if no run ended well."""
    if not row.records:
        return "failed"
    shape = {"better": "▲ ", "worse": "▼ ", "not separated": "≈ "}.get(row.verdict, "")
    return f"{shape}{row.verdict}"


def headline(study: Study) -> list[str]:
    """Return what was found, in a few sentences."""
    reference = study.rows[0]
    sentences = [*_chosen(study), *_separated(study), *_not_separated(study), *_smallest(study)]
    if reference.score is None:
        sentences.insert(
            0, f"The reference {reference.label} has no finished run; nothing is compared with it."
        )
    elif len(study.rows) == 1:
        score = f"{score_text(reference.score)} {range_text(reference.score)}".strip()
        sentences.insert(0, f"{reference.label} reaches {metric_name(study.metric)} {score}.")
    lost = [row.label for row in study.rows if not row.records]
    if lost:
        sentences.append(f"{listed(lost)} failed in every run.")
    return sentences


def listed(names: Sequence[str]) -> str:
    """Return names as a list in prose: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def _rounded(value: float) -> str:
    text = f"{abs(value):.3f}"
    return f"−{text}" if value < 0 and text != "0.000" else text


def _rows_text(labels: Sequence[str], study: Study) -> str:
    if len(labels) <= _MOST_NAMES:
        return listed(labels)
    return f"{len(labels)} of the {len(study.rows) - 1} other methods"


def _chosen(study: Study) -> list[str]:
    return [
        f"{choice.contenders[0].label} was chosen of {len(choice.contenders)} compositions; what follows is "
        "measured on the rows it was chosen by, which flatters it."
        for choice in study.choices
        if choice.contenders[0].outcome == CHOSEN
    ]


def _separated(study: Study) -> list[str]:
    """Say which rows differ from the reference: each by itself, or together where they are many."""
    reference, metric = study.rows[0].label, metric_name(study.metric)
    sentences: list[str] = []
    for verdict in ("better", "worse"):
        found = [
            (row.label, row.difference.interval)
            for row in study.rows
            if row.difference and row.verdict == verdict
        ]
        if len(found) > _MOST_SENTENCES:
            size = sorted(abs(interval.value) for _, interval in found)
            rows = _rows_text([label for label, _ in found], study)
            sentences.append(
                f"{rows} are {verdict} than {reference} in {metric}, by {size[0]:.3f} to {size[-1]:.3f}."
            )
            continue
        sentences += [
            f"{label} is {verdict} than {reference} in {metric}, by {difference_text(interval)}."
            for label, interval in found
        ]
    return sentences


def _not_separated(study: Study) -> list[str]:
    names = [row.label for row in study.rows if row.verdict == "not separated"]
    if not names:
        return []
    verb = "is" if len(names) == 1 else "are"
    metric = metric_name(study.metric)
    return [
        f"{_rows_text(names, study)} {verb} not separated from {study.rows[0].label} in {metric} "
        f"by {study.examples:,} examples.",
        *_clear_alone(study),
    ]


def _clear_alone(study: Study) -> list[str]:
    """Say of which rows the interval excludes zero, while the table's comparisons together do not."""
    found = [
        row.label
        for row in study.rows
        if row.verdict == "not separated" and row.difference and row.difference.interval.is_clear
    ]
    if not found:
        return []
    whose = f"Alone, the difference of {_rows_text(found, study)}"
    return [f"{whose} would be clear of zero; among the table's comparisons it is not (Holm's correction)."]


def _smallest(study: Study) -> list[str]:
    """Say what the smallest file of an adapter costs, unless it is the reference's. A head alone is none."""
    adapters = [row for row in study.rows if row.mean(lambda run: run.parameters.trainable)]
    sizes = [(size, row) for row in adapters if (size := row.mean(lambda run: run.bytes.weights_file))]
    reference = study.rows[0].mean(lambda run: run.bytes.weights_file)
    if not sizes or not reference:
        return []
    size, row = min(sizes, key=lambda pair: pair[0])
    if row is study.rows[0]:
        return []
    share = f"{size / reference:.0%}" if size / reference >= 0.005 else "under 1%"  # noqa: PLR2004
    return [
        f"{row.label} has the smallest file: {bytes_text(size)}, {share} "
        f"of {study.rows[0].label}'s {bytes_text(reference)}."
    ]
