"""Metrics of rows whose labels are lists: sets of class names, and the tags of tokens with their entities.

Each row is counted once (hits, labels, predictions); a metric is a ratio of sums of these counts over rows,
so that a bootstrap over rows only adds integers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rankfold.errors import unknown_name
from rankfold.tasks.metrics import METRICS, Metric, Values, ratio

OUTSIDE = frozenset({"O", "o", "0", "_", ""})
"""Tags of tokens that belong to no entity."""

_PREFIXED = re.compile(r"([BIESLUM])[-_](.+)", re.DOTALL)
_CLOSES, _SINGLE = frozenset("ESLU"), frozenset("SU")

Entity = tuple[str, int, int]
"""Type, first token, and the token behind the last."""


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a row of tags, in order.

    Tags are of the schemes BIO, BIOES or BILOU ("B-PER"); tags without a prefix make one entity of equal
    neighbours. As in the evaluation of CoNLL, an entity that begins with "I-" counts.

    Example:
        >>> find_entities(["B-PER", "I-PER", "O", "B-LOC"])
        [('PER', 0, 2), ('LOC', 3, 4)]
    """
    entities: list[Entity] = []
    open_type, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, kind = split_tag(tag)
        goes_on = kind and kind == open_type and prefix in ("I", "M", "E", "L", "")
        if open_type and not goes_on:
            entities.append((open_type, start, place))
            open_type = ""
        if kind and not open_type:
            open_type, start = kind, place
        if open_type and prefix in _CLOSES:
            entities.append((open_type, start, place + 1))
            open_type = ""
    return entities


def split_tag(tag: str) -> tuple[str, str]:
    """Return prefix and type of a tag: ("B", "PER") of "B-PER"; the type is "" outside of entities."""
    if tag in OUTSIDE:
        return "", ""
    match = _PREFIXED.fullmatch(tag)
    return (match[1], match[2]) if match else ("", tag)


def tags_of(prediction: Any, length: int) -> list[str]:
    """Return predicted tags, one for each token; one tag alone, a baseline's, holds for all."""
    return [prediction] * length if isinstance(prediction, str) else cast("list[str]", prediction)


def _count_sets(labels: Sequence[Any], predictions: Sequence[Any]) -> Values:
    """Return hits, labels and predictions of each class in each row, and whether the row is right."""
    names = sorted({str(name) for row in (*labels, *predictions) for name in row})
    places = {name: place for place, name in enumerate(names)}
    counts = np.zeros(len(labels), [("truth", bool, (len(names),)), ("guess", bool, (len(names),))])
    for field, rows in (("truth", labels), ("guess", predictions)):
        for index, row in enumerate(rows):
            counts[field][index, [places[str(name)] for name in row]] = True
    return counts


def _count_entities(labels: Sequence[Any], predictions: Sequence[Any]) -> Values:
    counts = np.zeros(len(labels), [("hits", "i4"), ("truth", "i4"), ("guess", "i4")])
    for index, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        truth, guess = set(find_entities(label)), set(find_entities(tags_of(prediction, len(label))))
        counts[index] = len(truth & guess), len(truth), len(guess)
    return counts


def _count_tokens(labels: Sequence[Any], predictions: Sequence[Any]) -> Values:
    counts = np.zeros(len(labels), [("hits", "i4"), ("truth", "i4"), ("guess", "i4")])
    for index, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        guess = tags_of(prediction, len(label))
        counts[index] = sum(map(str.__eq__, label, guess)), len(label), len(guess)
    return counts


def _class_sums(counts: Values) -> tuple[Values, Values, Values]:
    """Return hits, labels and predictions of each class, summed over rows: `[..., classes]`."""
    truth, guess = counts["truth"], counts["guess"]
    return np.sum(truth & guess, axis=-2), np.sum(truth, axis=-2), np.sum(guess, axis=-2)


def _row_sums(counts: Values) -> tuple[Values, Values, Values]:
    hits, truth, guess = (np.sum(counts[name], axis=-1) for name in ("hits", "truth", "guess"))
    return hits, truth, guess


def _f1(hits: Values, truth: Values, guess: Values) -> NDArray[np.float64]:
    return ratio(2 * hits, truth + guess)


def _precision(hits: Values, truth: Values, guess: Values) -> NDArray[np.float64]:
    return ratio(hits, guess)


def _recall(hits: Values, truth: Values, guess: Values) -> NDArray[np.float64]:
    return ratio(hits, truth)


_Ratio = Callable[[Values, Values, Values], NDArray[np.float64]]


def _micro(of_sums: _Ratio) -> Metric:
    """Return a metric of all labels of all rows together."""

    def micro(_labels: Values, counts: Values) -> NDArray[np.float64]:
        hits, truth, guess = (np.sum(part, axis=-1) for part in _class_sums(counts))
        return of_sums(hits, truth, guess)

    return Metric(micro, counts=_count_sets)


def _macro_f1(_labels: Values, counts: Values) -> NDArray[np.float64]:
    hits, truth, guess = _class_sums(counts)
    occurs = truth + guess > 0
    return ratio(np.sum(_f1(hits, truth, guess), axis=-1), np.sum(occurs, axis=-1))


def _exact_match(_labels: Values, counts: Values) -> NDArray[np.float64]:
    return np.mean(np.all(counts["truth"] == counts["guess"], axis=-1), axis=-1)


def _hamming_error(_labels: Values, counts: Values) -> NDArray[np.float64]:
    wrong: Values = counts["truth"] != counts["guess"]
    return ratio(np.sum(wrong, axis=(-2, -1)), np.array(wrong.shape[-2] * wrong.shape[-1]))


def _of_entities(of_sums: _Ratio) -> Metric:
    return Metric(lambda _labels, counts: of_sums(*_row_sums(counts)), counts=_count_entities)


SET_METRICS: Mapping[str, Metric] = {
    "micro_f1": _micro(_f1),
    "macro_f1": Metric(_macro_f1, counts=_count_sets),
    "exact_match": Metric(_exact_match, counts=_count_sets),
    "micro_precision": _micro(_precision),
    "micro_recall": _micro(_recall),
    "hamming_error": Metric(_hamming_error, is_error=True, counts=_count_sets),
}
"""Metrics of sets of class names, as scikit-learn has them; a class counts if it occurs in the sample."""

TAG_METRICS: Mapping[str, Metric] = {
    "entity_f1": _of_entities(_f1),
    "entity_precision": _of_entities(_precision),
    "entity_recall": _of_entities(_recall),
    "token_accuracy": Metric(lambda _labels, counts: _recall(*_row_sums(counts)), counts=_count_tokens),
}
"""Metrics of tags: an entity is right if type, beginning and end are."""

_LIST_METRICS = {**SET_METRICS, **TAG_METRICS}


def metric_for(name: str, label: object) -> Metric | None:
    """Return the metric of a name for labels like this one; None if it is one of another package.

    Args:
        name: The metric's name.
        label: The label of a row: a number, a text, or a list of texts.
    """
    if not isinstance(label, list):
        return METRICS.get(name)
    is_ours = all(isinstance(item, str) for item in cast("list[object]", label))
    return _LIST_METRICS.get(name) if is_ours else None


def score_lists(names: Sequence[str], labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Return metrics of rows of lists.

    Args:
        names: Keys of `SET_METRICS` or `TAG_METRICS`.
        labels: The right values.
        predictions: In the same order.

    Raises:
        SpecError: If a metric is unknown.
    """
    scores: dict[str, float] = {}
    for name in names:
        metric = _LIST_METRICS.get(name)
        if metric is None or metric.counts is None:
            raise unknown_name("metric", name, _LIST_METRICS)
        counts = metric.counts(labels, predictions)
        scores[name] = float(metric.function(counts, counts))
    return scores
