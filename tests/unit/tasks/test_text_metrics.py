"""Metrics of texts: by their definitions, of what a model writes, and only where they are asked for."""

from dataclasses import replace

import numpy as np
import pytest

from rankfold.models.base import resolve_model
from rankfold.tasks.kinds import Examples, Learner
from rankfold.tasks.kinds.answers import Instruction, generate_answers
from rankfold.tasks.kinds.instruction import KIND
from rankfold.tasks.kinds.learner import Sampling
from rankfold.tasks.metrics import find_metric, measure

NAMES = ("exact_match", "rouge_l")


@pytest.mark.parametrize(
    ("label", "prediction", "exact", "rouge"),
    [
        ("the cat sat", "the cat sat", 1, 1),
        ("the cat sat", " the  cat sat\n", 1, 1),
        ("The cat sat.", "the cat sat", 0, 1),
        # Lin 2004, section 3.1: of four words three, and two, are in the common subsequence.
        ("police killed the gunman", "police kill the gunman", 0, 0.75),
        ("police killed the gunman", "the gunman kill police", 0, 0.5),
        ("a b c d e", "b d", 0, 2 * 2 / 7),
        ("a", "", 0, 0),
        ("Größe 3 µm", "größe 3", 0, 0.8),
    ],
)
def test_the_metrics_of_texts_are_those_of_their_papers(label, prediction, exact, rouge):
    assert measure(NAMES, [label], [prediction]) == {"exact_match": exact, "rouge_l": pytest.approx(rouge)}


def test_the_metrics_of_texts_are_means_over_the_last_axis():
    labels, predictions = np.array([["a b", "c"], ["c", "a b"]]), np.array([["a x", "c"], ["x", "a b"]])
    assert find_metric("exact_match").function(labels, predictions).tolist() == [0.5, 0.5]
    assert find_metric("rouge_l").function(labels, predictions).tolist() == [0.75, 0.5]


def test_the_model_s_own_texts_are_measured_where_somebody_asks(tiny_llama):
    base = KIND.load(resolve_model(str(tiny_llama)))
    learner = Learner(base.model, base.processor, 48, 2)
    answers = ("good", "the film was good", "bad")
    items = [Instruction(i, f"the film {word}", word) for i, word in enumerate(answers)]
    short = replace(learner, sampling=Sampling(max_new_tokens=5))  # four words and the end
    texts = [text.strip() for text in generate_answers(short, items)]
    items[2] = replace(items[2], answer=" ".join(texts[2].split()[:4]))
    examples = Examples(None, {"validation": items})
    assert KIND.metrics(examples) == ("answer_loss",)
    assert KIND.possible_metrics(examples) == ("answer_loss", *NAMES)
    metrics = (*NAMES, "answer_loss")
    result = KIND.evaluate(learner, items, metrics)
    assert (result.ids, result.labels) == ([0, 1, 2], [item.answer for item in items])
    assert result.metrics == {
        **measure(NAMES, result.labels, result.predictions),
        "answer_loss": result.loss,
    }
    assert result.predictions == texts
    assert KIND.evaluate(learner, items, metrics, is_final=False).predictions == []
