"""Findings as sentences: which methods differ from the reference, and how far the comparison holds."""

from collections.abc import Mapping, Sequence

from rankfold.bench.statistics.comparison import LEVEL
from rankfold.bench.statistics.confidence import RESAMPLES
from rankfold.report.format import bytes_text, difference_text, listed, metric_name, range_text, score_text
from rankfold.report.results import Result
from rankfold.report.selection import CHOSEN
from rankfold.report.study import Study

# Of more rows than these, the finding is told of all together, or their number alone.
_MOST_SENTENCES, _MOST_NAMES = 3, 6


def headline(study: Study) -> list[str]:
    """Return what was found, in a few sentences."""
    reference = study.results[0]
    sentences = [*_chosen(study), *_separated(study), *_not_separated(study), *_smallest(study)]
    if reference.score is None:
        sentences.insert(
            0, f"The reference {reference.label} has no finished run; nothing is compared with it."
        )
    elif len(study.results) == 1:
        score = f"{score_text(reference.score)} {range_text(reference.score)}".strip()
        sentences.insert(0, f"{reference.label} reaches {metric_name(study.metric)} {score}.")
    lost = [result.label for result in study.results if not result.records]
    if lost:
        sentences.append(f"{listed(lost)} failed in every run.")
    return sentences


def _rows_text(labels: Sequence[str], study: Study) -> str:
    if len(labels) <= _MOST_NAMES:
        return listed(labels)
    return f"{len(labels)} of the {len(study.results) - 1} other methods"


def _chosen(study: Study) -> list[str]:
    return [
        f"{choice.contenders[0].label} was chosen of {len(choice.contenders)} compositions; what follows is "
        "measured on the rows it was chosen by, which flatters it."
        for choice in study.choices
        if choice.contenders[0].outcome == CHOSEN
    ]


def _separated(study: Study) -> list[str]:
    """Say which rows differ from the reference: each by itself, or together where they are many."""
    reference, metric = study.results[0].label, metric_name(study.metric)
    sentences: list[str] = []
    for verdict in ("better", "worse"):
        found = [
            (result.label, result.difference.interval)
            for result in study.results
            if result.difference and result.verdict == verdict
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
    names = [result.label for result in study.results if result.verdict == "not separated"]
    if not names:
        return []
    verb = "is" if len(names) == 1 else "are"
    metric = metric_name(study.metric)
    return [
        f"{_rows_text(names, study)} {verb} not separated from {study.results[0].label} in {metric} "
        f"by {study.examples:,} examples.",
        *_clear_alone(study),
    ]


def _clear_alone(study: Study) -> list[str]:
    """Say of which rows the interval excludes zero, while the table's comparisons together do not."""
    found = [
        result.label
        for result in study.results
        if result.verdict == "not separated" and result.difference and result.difference.interval.is_clear
    ]
    if not found:
        return []
    whose = f"Alone, the difference of {_rows_text(found, study)}"
    return [f"{whose} would be clear of zero; among the table's comparisons it is not (Holm's correction)."]


def _smallest(study: Study) -> list[str]:
    """Say what the smallest file of an adapter costs, unless it is the reference's. A head alone is none."""
    adapters = [result for result in study.results if result.mean(lambda run: run.parameters.trainable)]
    sizes = [
        (size, result) for result in adapters if (size := result.mean(lambda run: run.bytes.weights_file))
    ]
    reference = study.results[0].mean(lambda run: run.bytes.weights_file)
    if not sizes or not reference:
        return []
    size, result = min(sizes, key=lambda pair: pair[0])
    if result is study.results[0]:
        return []
    share = f"{size / reference:.0%}" if size / reference >= 0.005 else "under 1%"  # noqa: PLR2004
    return [
        f"{result.label} has the smallest file: {bytes_text(size)}, {share} "
        f"of {study.results[0].label}'s {bytes_text(reference)}."
    ]


# What a budget is made of, by the names of a result's settings.
_PARTS = {"steps": "steps", "batch_size": "rows in each", "rows": "training rows"}
_MOST_LABELS = 3


def budgets_text(rows: Sequence[Result]) -> str:
    """Return in what the budgets of rows differ: "The budgets differ: 3 steps (tlora), 1 (lora)."; else "".

    Args:
        rows: The rows of a study; those without a finished run used up no budget.
    """
    trained = [result for result in rows if result.records]
    parts = [_differing(name, trained) for name in _PARTS] + [_reduced(trained)]
    found = "; ".join(filter(None, parts))
    return f"The budgets differ: {found}." if found else ""


def _differing(name: str, rows: Sequence[Result]) -> str:
    """Return the values of a part of the budget with the rows that have them; "" if all have one."""
    labels: dict[object, list[str]] = {}
    for result in rows:
        if name in result.settings:  # what tuning chose is not among them
            labels.setdefault(result.settings[name], []).append(result.label)
    if len(labels) < 2:  # noqa: PLR2004
        return ""
    return f"{_PARTS[name]} {_with_labels(labels)}"


def _with_labels(labels: Mapping[object, Sequence[str]]) -> str:
    return ", ".join(f"{value:,} ({_named(names)})" for value, names in labels.items())


def _reduced(rows: Sequence[Result]) -> str:
    """Return which rows have a Reducer, under which layers rest; "" if all have one, or none has."""
    reduced = [result.label for result in rows if "reducer" in result.settings]
    return f"a Reducer lets layers rest in {_named(reduced)}" if 0 < len(reduced) < len(rows) else ""


def _named(labels: Sequence[str]) -> str:
    return listed(labels) if len(labels) <= _MOST_LABELS else f"{len(labels)} methods"


READING_TITLE = "How to read this"

READING = (
    "A value is the mean over the seeds. Its interval says where the mean could be with other examples "
    f"({LEVEL:.0%}; Wilson's interval for the accuracy of one seed, otherwise a bootstrap with {RESAMPLES:,} "
    "resamples), and with other seeds where there are at least two (Student's t: with two or three seeds it "
    "is wide, because two or three numbers say little of how far a fourth may lie).",
    "A difference is paired: both methods on the same examples with the same seeds. It can be clear while "
    "the intervals of the two values overlap.",
    "“Better” and “worse” hold for all comparisons of a table together (Holm's correction); the interval "
    "beside them is that of one comparison alone, so it can be clear of zero where the verdict is “not "
    "separated”. That means that this much data cannot tell the two apart; it does not mean that they are "
    "equal.",
    "Trainable numbers are those of the adapter; a task head beside it is the same for every method and "
    "counted apart. The size on disk is that of the weights file, task head included.",
)
