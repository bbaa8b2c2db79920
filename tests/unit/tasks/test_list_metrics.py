"""Metrics of lists against scikit-learn, and entities against a reader of one tag at a time."""

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import MultiLabelBinarizer

from rankfold.bench.statistics.comparison import mean_score, shared_examples
from rankfold.errors import SpecError
from rankfold.runs.record import Prediction
from rankfold.tasks.list_metrics import SET_METRICS, find_entities, metric_for, score_lists
from tests.support.records import make_record

SETS = st.lists(st.tuples(*[st.sets(st.sampled_from("abcd"))] * 2), min_size=1, max_size=12)
TAGS = st.lists(st.sampled_from(["O", *(f"{p}-{t}" for p in "BI" for t in ("PER", "LOC"))]), max_size=9)


def _library(name, labels, predictions):
    names = sorted({item for row in (*labels, *predictions) for item in row})
    if not names:
        return 1.0 if name == "exact_match" else 0.0
    binarizer = MultiLabelBinarizer(classes=names).fit([])
    truth, guess = binarizer.transform(labels), binarizer.transform(predictions)
    if name == "exact_match":
        return sklearn.metrics.accuracy_score(truth, guess)
    if name == "hamming_error":
        return sklearn.metrics.hamming_loss(truth, guess)
    average, score = name.split("_")
    if len(names) == 1:  # the library would take the absence of the one for a class
        average, truth, guess = "binary", truth.ravel(), guess.ravel()
    return getattr(sklearn.metrics, f"{score}_score")(truth, guess, average=average, zero_division=0.0)


@pytest.mark.parametrize("name", sorted(SET_METRICS))
@given(rows=SETS)
def test_metrics_of_sets_equal_those_of_scikit_learn(name, rows):
    labels, predictions = ([sorted(row[place]) for row in rows] for place in (0, 1))
    assert score_lists([name], labels, predictions)[name] == pytest.approx(
        _library(name, labels, predictions)
    )


def _entities_one_by_one(tags):
    """Return the entities of BIO tags: a tag begins one unless it is an I- after a tag of the same type."""
    begins = [
        place
        for place, tag in enumerate(tags)
        if tag != "O" and (tag[0] == "B" or place == 0 or tags[place - 1][2:] != tag[2:])
    ]
    entities = []
    for begin in begins:
        end = begin + 1
        while end < len(tags) and tags[end] == f"I-{tags[begin][2:]}":
            end += 1
        entities.append((tags[begin][2:], begin, end))
    return entities


@given(tags=TAGS)
def test_entities_are_those_of_a_simple_reader(tags):
    assert find_entities(tags) == _entities_one_by_one(tags)


@given(entities=st.lists(st.tuples(st.sampled_from(["PER", "LOC"]), st.integers(1, 4)), max_size=4))
def test_every_scheme_has_the_same_entities(entities):
    schemes = {"BIO": "BIIB", "BIOES": "BIES", "BILOU": "BILU"}
    written = {}
    for name, (begin, inside, end, single) in schemes.items():
        rows = []
        for kind, length in entities:
            prefixes = [single] if length == 1 else [begin, *inside * (length - 2), end]
            rows += ["O", *(f"{prefix}-{kind}" for prefix in prefixes)]
        written[name] = find_entities(rows)
    assert written["BIO"] == written["BIOES"] == written["BILOU"]
    assert [(kind, end - start) for kind, start, end in written["BIO"]] == entities


@given(rows=st.lists(st.tuples(TAGS, TAGS), min_size=1))
def test_entity_scores_are_shares_of_equal_spans(rows):
    pairs = [(row[: len(other)], other[: len(row)]) for row, other in rows]
    truth = {(n, *span) for n, (tags, _) in enumerate(pairs) for span in find_entities(tags)}
    guess = {(n, *span) for n, (_, tags) in enumerate(pairs) for span in find_entities(tags)}
    scores = score_lists(["entity_f1", "entity_precision", "entity_recall"], *zip(*pairs, strict=True))
    hits = len(truth & guess)
    assert scores["entity_precision"] == pytest.approx(hits / len(guess) if guess else 0.0)
    assert scores["entity_recall"] == pytest.approx(hits / len(truth) if truth else 0.0)
    assert scores["entity_f1"] == pytest.approx(
        2 * hits / (len(truth) + len(guess)) if truth | guess else 0.0
    )


def test_equal_neighbours_without_prefix_are_one_entity():
    assert find_entities(["1", "1", "0", "3", "1"]) == [("1", 0, 2), ("3", 3, 4), ("1", 4, 5)]


def test_baseline_of_one_tag_holds_for_every_token():
    labels = [["O", "B-PER"], ["O"]]
    assert score_lists(["token_accuracy", "entity_f1"], labels, ["O", "O"]) == {
        "token_accuracy": pytest.approx(2 / 3),
        "entity_f1": 0.0,
    }


def test_metric_that_is_unknown_has_a_suggestion():
    with pytest.raises(SpecError, match="Did you mean 'entity_f1'"):
        score_lists(["entity_f"], [["O"]], [["O"]])


@pytest.mark.parametrize(
    ("metric", "values"),
    [("micro_f1", ["a", "b"]), ("macro_f1", ["a", "b"]), ("entity_f1", ["B-PER", "O"])],
)
def test_runs_with_lists_have_intervals_over_their_rows(metric, values):
    generator = np.random.default_rng(0)
    rows = [[values[i] for i in generator.integers(0, 2, 2)] for _ in range(60)]
    guesses = [row if n % 3 else [values[0]] * 2 for n, row in enumerate(rows)]
    predictions = [Prediction(n, *pair) for n, pair in enumerate(zip(rows, guesses, strict=True))]
    made = make_record()
    runs = [replace(made, task=replace(made.task, metric=metric), predictions=tuple(predictions))]
    interval = mean_score(runs, metric, shared_examples(runs))
    assert interval.value == pytest.approx(score_lists([metric], rows, guesses)[metric])
    assert interval.low < interval.value < interval.high


def test_lists_of_another_package_are_not_measured():
    assert metric_for("exact_match", [1.0, 0.0]) is None
    assert metric_for("exact_match", ["a"]) is not None
