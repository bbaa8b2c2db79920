"""Findings as sentences: which methods differ, on which budgets, and how to read the numbers."""

from collections.abc import Mapping, Sequence

from rankfold.bench.statistics.comparison import LEVEL
from rankfold.bench.statistics.confidence import POWER, RESAMPLES
from rankfold.report.format import (
    bytes_text,
    difference_text,
    join_names,
    metric_name,
    range_text,
    score_text,
)
from rankfold.report.results import Result, file_bytes
from rankfold.report.selection import CHOSEN
from rankfold.report.study import Study
from rankfold.runs.remarks import remarks

# With more methods than these, one sentence speaks of all of them, or gives their number alone.
_MOST_SENTENCES, _MOST_NAMES = 3, 6

# The parts of a budget, by the names of a result's settings.
_BUDGET_PARTS = {"steps": "steps", "batch_size": "batch size", "rows": "training rows"}
_MOST_BUDGET_NAMES = 3

READING_TITLE = "How to read this"

READING = (
    f"A value is the mean over the seeds, with its {LEVEL:.0%} interval. The interval covers the choice of "
    "held-out examples (Wilson's interval for the accuracy of one seed, otherwise a bootstrap with "
    f"{RESAMPLES:,} resamples) and, with two seeds or more, the choice of seeds (Student's t). With two or "
    "three seeds it is wide: they say little about the next one.",
    "A difference is paired: both methods on the same examples with the same seeds. It can be clear of zero "
    "while the intervals of the two values overlap.",
    "“Better” and “worse” hold for all comparisons of a table together (Holm's correction). The interval "
    "beside a verdict is that of one comparison alone, so it can be clear of zero where the verdict is “not "
    "separated”. “Not separated” means that these data cannot tell the two apart, not that they are equal. "
    "“Equivalent” means that two one-sided tests place the difference within the margin of the suite on both "
    "sides, and “not inferior” that it is not below it.",
    "“Could show” is the smallest true difference that so many seeds and examples find with a probability of "
    f"{POWER:.0%} among so many comparisons.",
    "Trainable parameters are those of the adapter. A task head beside it is the same for every method and "
    "counted apart. The size on disk is that of the weights file, with the task head.",
)


def headline(study: Study) -> list[str]:
    """Return the findings of a study in a few sentences."""
    reference = study.results[0]
    sentences = [
        *_selection_sentences(study),
        *_difference_sentences(study),
        *_parity_sentences(study),
        *_unseparated_sentences(study),
        *_smallest_file(study),
        *_without_gain(study),
    ]
    if reference.score is None:
        sentences.insert(
            0, f"The reference {reference.label} has no finished run, so nothing is compared with it."
        )
    elif len(study.results) == 1:
        score = f"{score_text(reference.score)} {range_text(reference.score)}".strip()
        sentences.insert(0, f"{reference.label} reaches {metric_name(study.metric)} {score}.")
    failures = [result.label for result in study.results if not result.records]
    if failures:
        sentences.append(f"{join_names(failures)} failed in every run.")
    return sentences


def _selection_sentences(study: Study) -> list[str]:
    """Return which composition each selection chose."""
    return [
        f"{choice.contenders[0].label} was chosen of {len(choice.contenders)} compositions. The scores below "
        "are on the rows it was chosen by, which flatters it."
        for choice in study.choices
        if choice.contenders[0].outcome == CHOSEN
    ]


def _difference_sentences(study: Study) -> list[str]:
    """Return which methods are better or worse than the reference: one by one, or together if many."""
    reference, metric = study.results[0].label, metric_name(study.metric)
    sentences: list[str] = []
    for verdict in ("better", "worse"):
        intervals = {
            result.label: result.difference.interval
            for result in study.results
            if result.difference and result.verdict == verdict
        }
        if len(intervals) > _MOST_SENTENCES:
            sizes = sorted(abs(interval.value) for interval in intervals.values())
            sentences.append(
                f"{_names_or_count(list(intervals), study)} are {verdict} than {reference} in {metric}, "
                f"by {sizes[0]:.3f} to {sizes[-1]:.3f}."
            )
        else:
            sentences += [
                f"{label} is {verdict} than {reference} in {metric}, by {difference_text(interval)}."
                for label, interval in intervals.items()
            ]
    return sentences


def _parity_sentences(study: Study) -> list[str]:
    """Return which methods are equivalent to the reference, or not inferior, within the suite's margin."""
    reference, metric = study.results[0].label, metric_name(study.metric)
    sentences: list[str] = []
    for verdict in ("equivalent", "not inferior"):
        labels = [result.label for result in study.results if result.verdict == verdict]
        if labels:
            verb = "is" if len(labels) == 1 else "are"
            sentences.append(
                f"{_names_or_count(labels, study)} {verb} {verdict} to {reference} in {metric} by the margin "
                "of the suite."
            )
    return sentences


def _unseparated_sentences(study: Study) -> list[str]:
    """Return which methods are not separated, and which of them would be if compared alone."""
    results = [result for result in study.results if result.verdict == "not separated"]
    if not results:
        return []
    names = _names_or_count([result.label for result in results], study)
    verb = "is" if len(results) == 1 else "are"
    reference, metric = study.results[0].label, metric_name(study.metric)
    sentence = f"{names} {verb} not separated from {reference} in {metric} by {study.examples:,} examples."
    clear = [result.label for result in results if result.difference and result.difference.interval.is_clear]
    if not clear:
        return [sentence]
    return [
        sentence,
        f"Alone, the difference of {_names_or_count(clear, study)} would be clear of zero; among all "
        "comparisons of the table it is not (Holm's correction).",
    ]


def _smallest_file(study: Study) -> list[str]:
    """Return which adapter has the smallest file, unless it is the reference.

    A head alone is no adapter, and one that has learned nothing may be of any size.
    """
    adapters = [
        result
        for result in study.results
        if result.mean(lambda run: run.parameters.trainable) and not all(map(remarks, result.records))
    ]
    sizes = [(size, result) for result in adapters if (size := result.mean(file_bytes))]
    reference = study.results[0].mean(file_bytes)
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


def _without_gain(study: Study) -> list[str]:
    """Return which methods have runs that learned nothing: one prediction for every row, or no gain."""
    runs = {
        result.label: (count, len(result.records), remarks(record)[0])
        for result in study.results
        if (count := sum(bool(remarks(record)) for record in result.records))
        for record in result.records
        if remarks(record)
    }
    if len(runs) > _MOST_SENTENCES:
        count = f"{len(runs)} of the {len(study.results)} methods"
        names = f" ({join_names(list(runs))})" if len(runs) <= _MOST_NAMES else ""
        return [f"{count}{names} have runs that are not above a model that never looks at its input."]
    return [f"{label}, {count} of {total} runs: {remark}" for label, (count, total, remark) in runs.items()]


def _names_or_count(labels: Sequence[str], study: Study) -> str:
    if len(labels) <= _MOST_NAMES:
        return join_names(labels)
    return f"{len(labels)} of the {len(study.results) - 1} other methods"


def budgets_text(results: Sequence[Result]) -> str:
    """Return how budgets differ: "The budgets differ: steps 100 (lora), 3 (tlora)."; "" if they do not.

    Args:
        results: Those of a study; those without a finished run used up no budget.
    """
    results = [result for result in results if result.records]
    parts = [*(_budget_difference(name, results) for name in _BUDGET_PARTS), _reducer_difference(results)]
    text = "; ".join(filter(None, parts))
    return f"The budgets differ: {text}." if text else ""


def _budget_difference(name: str, results: Sequence[Result]) -> str:
    """Return the values of one part of the budget with their methods; "" if all have one value."""
    labels: dict[object, list[str]] = {}
    for result in results:
        if name in result.settings:  # a value that tuning chose is not among them
            labels.setdefault(result.settings[name], []).append(result.label)
    if len(labels) < 2:  # noqa: PLR2004
        return ""
    return f"{_BUDGET_PARTS[name]} {_values_with_methods(labels)}"


def _values_with_methods(labels: Mapping[object, Sequence[str]]) -> str:
    return ", ".join(f"{value:,} ({_few_names(names)})" for value, names in labels.items())


def _reducer_difference(results: Sequence[Result]) -> str:
    """Return which methods have a Reducer, under which layers rest; "" if all have one, or none has."""
    labels = [result.label for result in results if "reducer" in result.settings]
    return f"a Reducer lets layers rest in {_few_names(labels)}" if 0 < len(labels) < len(results) else ""


def _few_names(labels: Sequence[str]) -> str:
    return join_names(labels) if len(labels) <= _MOST_BUDGET_NAMES else f"{len(labels)} methods"
