"""Measuring: independent of batches, and equal to the definition of each loss."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from rankfold.errors import AdapterFileError, SpecError, TrainingError
from rankfold.models.base import resolve_model
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Table
from rankfold.tasks.kinds import Examples, LabelHints, Learner
from rankfold.tasks.kinds.answers import Instruction
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.kinds.labelled import Example
from rankfold.tasks.kinds.learner import Sampling
from rankfold.tasks.kinds.multi_label import KIND as MULTI_LABEL
from rankfold.tasks.kinds.multiple_choice import KIND as MULTIPLE_CHOICE
from rankfold.tasks.kinds.regression import KIND as REGRESSION
from rankfold.tasks.kinds.token_labels import KIND as TOKEN_LABELS
from rankfold.tasks.scoring import Scoring
from rankfold.tasks.task import Task, TaskData
from tests.support.tiny_models import review_rows

TEXTS = [
    Example(f"r{i}", row["sentence"] + " film" * i, None, row["label"])
    for i, row in enumerate(review_rows(7))
]
CHOICES = ("is true", "is false", "correct answer is true")
QUESTIONS = [Instruction(i, "the film was good ?" + " film" * i, CHOICES[i % 3], CHOICES) for i in range(5)]
OPEN = [Instruction("open", "a story", "the film was good")]


@pytest.fixture(scope="module")
def bert(tiny_bert):
    torch.manual_seed(0)
    return CLASSIFICATION.load(resolve_model(str(tiny_bert)), ("bad", "good"))


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return INSTRUCTION.load(resolve_model(str(tiny_llama)))


def _evaluate(loaded, kind, items, metrics, *, batch_size=3, is_final=True):
    task = Task("reviews", kind.name, metrics)
    data = TaskData(task, kind, "here", "", Examples(None, {"test": items}))
    return data.evaluate(Learner(loaded.model, loaded.processor, 48, batch_size), "test", is_final=is_final)


def _labelled(loaded, *, batch_size=3, kind=CLASSIFICATION, metrics=("accuracy",), texts=TEXTS):
    return _evaluate(loaded, kind, texts, metrics, batch_size=batch_size)


def _answers(loaded, items, *, batch_size=3, is_final=True):
    return _evaluate(loaded, INSTRUCTION, items, (), batch_size=batch_size, is_final=is_final)


def test_predictions_keep_the_order_of_the_examples(bert):
    together = _labelled(bert)
    alone = [_labelled(bert, texts=[text]).predictions[0] for text in TEXTS]
    assert together.ids == [text.id for text in TEXTS]
    assert together.labels == [text.label for text in TEXTS]
    assert together.predictions == alone


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_changes_nothing(bert, llama, batch_size):
    assert _labelled(bert, batch_size=batch_size).loss == pytest.approx(_labelled(bert).loss, rel=1e-5)
    one, other = (_answers(llama, QUESTIONS, batch_size=size) for size in (3, batch_size))
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.predictions == other.predictions


def test_the_loss_of_a_regression_is_the_mean_squared_error(tiny_bert):
    torch.manual_seed(0)
    loaded = REGRESSION.load(resolve_model(str(tiny_bert)))
    texts = [Example(i, text.text, None, 0.5 * i) for i, text in enumerate(TEXTS)]
    result = _labelled(loaded, kind=REGRESSION, metrics=("pearson",), texts=texts)
    errors = [(p - t) ** 2 for p, t in zip(result.predictions, result.labels, strict=True)]
    assert result.loss == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_the_loss_of_answers_is_a_token_s_mean_over_all_answers(llama):
    total, tokens = 0.0, 0
    for item in QUESTIONS:
        ids = llama.processor(f"[CLS] {item.prompt} {item.answer} [SEP]", return_tensors="pt")["input_ids"]
        length = len(item.answer.split()) + 1
        logits = llama.model(ids).logits[0, -length - 1 : -1]
        total += functional.cross_entropy(logits, ids[0, -length:], reduction="sum").item()
        tokens += length
    result = _answers(llama, QUESTIONS)
    assert result.loss == pytest.approx(total / tokens, rel=1e-5)
    assert result.metrics["answer_loss"] == result.loss


def test_the_chosen_candidate_has_the_lowest_mean_loss(llama):
    result = _answers(llama, QUESTIONS)
    for item, prediction in zip(QUESTIONS, result.predictions, strict=True):
        losses = [_answers(llama, [Instruction(0, item.prompt, choice)]).loss for choice in CHOICES]
        assert prediction == losses.index(min(losses))
    hits = [label == prediction for label, prediction in zip(result.labels, result.predictions, strict=True)]
    assert result.metrics["accuracy"] == sum(hits) / len(hits)


def test_open_answers_have_a_loss_and_no_prediction(llama):
    result = _answers(llama, [*QUESTIONS, *OPEN])
    assert result.ids == [item.id for item in QUESTIONS]
    alone = _answers(llama, OPEN)
    assert (alone.ids, list(alone.metrics)) == ([], ["answer_loss"])


def test_a_measurement_on_the_way_leaves_out_the_choice(llama):
    result = _answers(llama, QUESTIONS, is_final=False)
    assert result.loss == _answers(llama, QUESTIONS).loss
    assert result.predictions == []


def test_measuring_leaves_the_model_as_it_was(bert):
    bert.model.train()
    try:
        _labelled(bert)
        assert bert.model.training
        assert not any(p.is_inference() for p in bert.model.parameters())
    finally:
        bert.model.eval()


def test_a_loss_that_is_not_a_number_is_an_error(tiny_bert):
    loaded = CLASSIFICATION.load(resolve_model(str(tiny_bert)), ("bad", "good"))
    loaded.model.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss on the split 'test' is nan"):
        _labelled(loaded)


def _asked(kind, learner):
    """Return two inputs of a kind."""
    if kind is TOKEN_LABELS:
        return kind.inputs([{"tokens": text.text.split()} for text in TEXTS[:2]], Columns("tokens"))
    if kind in (INSTRUCTION, MULTIPLE_CHOICE):
        return QUESTIONS[:2]
    return kind.inputs([{"text": text.text} for text in TEXTS[:2]], Columns("text"))


KINDS = [
    *((kind, None) for kind in (CLASSIFICATION, MULTI_LABEL, REGRESSION, TOKEN_LABELS)),
    *((kind, scoring) for kind in (INSTRUCTION, MULTIPLE_CHOICE) for scoring in Scoring),
]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "scoring"), KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_that_is_not_a_number_is_an_error(kind, scoring, value, temperature, request):
    if temperature and scoring is not Scoring.GENERATED:
        return
    folder = request.getfixturevalue("tiny_bert" if scoring is None else "tiny_llama")
    names = None if kind is REGRESSION or scoring else ("bad", "good")
    loaded = kind.load(resolve_model(str(folder)), names)
    learner = Learner(
        loaded.model,
        loaded.processor,
        48,
        label_names=names or (),
        scoring=scoring,
        sampling=Sampling(4, temperature),
    )
    rows = _asked(kind, learner)
    for use in (kind.answer, kind.predict):
        assert len(use(learner, rows)) == len(rows)
        assert use(learner, []) == []
    head = loaded.model.get_output_embeddings() if scoring else loaded.model.classifier
    with torch.no_grad():
        head.weight[0] = value
    for use in (kind.answer, kind.predict):
        with pytest.raises(AdapterFileError, match=r"output for row 1 is not a finite number.*; restore"):
            use(learner, rows)


def test_a_prediction_does_not_look_at_the_label(bert, llama):
    unlabelled = [replace(text, label=None) for text in TEXTS]
    learner = Learner(bert.model, bert.processor, 48)
    assert CLASSIFICATION.predict(learner, unlabelled) == _labelled(bert).predictions
    unanswered = [replace(item, answer="") for item in QUESTIONS]
    learner = Learner(llama.model, llama.processor, 48)
    assert INSTRUCTION.predict(learner, unanswered) == _answers(llama, QUESTIONS).predictions


def test_rows_without_labels_are_inputs(bert, llama):
    texts = CLASSIFICATION.inputs([{"text": text.text} for text in TEXTS], Columns("text"))
    assert (
        CLASSIFICATION.predict(Learner(bert.model, bert.processor, 48), texts) == _labelled(bert).predictions
    )
    rows = [{"instruction": "a story"}, {"question": "a film", "choices": ["good", "bad"]}]
    story, choice = INSTRUCTION.predict(
        Learner(llama.model, llama.processor, 48), INSTRUCTION.inputs(rows, Columns())
    )
    assert isinstance(story, str)
    assert choice in (0, 1)


def test_the_answer_of_a_classification_is_the_predicted_class_with_probabilities(bert):
    names = ("bad", "good")
    learner = Learner(bert.model, bert.processor, 48, label_names=names)
    answers = CLASSIFICATION.answer(learner, [replace(text, label=None) for text in TEXTS])
    assert [names.index(answer["label"]) for answer in answers] == _labelled(bert).predictions
    for text, answer in zip(TEXTS, answers, strict=True):
        ids = bert.processor(text.text, return_tensors="pt", truncation=True, max_length=48)
        expected = bert.model(**ids).logits[0].softmax(-1).tolist()
        assert list(answer["probabilities"].values()) == pytest.approx(expected, rel=1e-5)
        assert answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())
    assert CLASSIFICATION.answer(learner, []) == []


@pytest.mark.parametrize("scoring", ["likelihood", "total_likelihood", "generated"])
def test_the_answer_of_a_choice_is_the_predicted_candidate(llama, scoring):
    learner = Learner(llama.model, llama.processor, 48, scoring=scoring)
    predictions = MULTIPLE_CHOICE.predict(learner, QUESTIONS)
    answers = MULTIPLE_CHOICE.answer(learner, [*OPEN, *QUESTIONS])[1:]
    assert [-1 if answer["choice"] is None else answer["choice"] for answer in answers] == predictions
    for answer in answers:
        if scoring != "generated":
            assert answer["text"] == CHOICES[answer["choice"]]
            assert sum(answer["probabilities"].values()) == pytest.approx(1)
            assert answer["probabilities"][answer["text"]] == max(answer["probabilities"].values())


def test_sampling_repeats_by_its_seed_and_leaves_torch_s_generator_alone(llama):
    def texts(**options):
        sampling = Sampling(**{"max_new_tokens": 8, "temperature": 2.0, **options})
        return INSTRUCTION.answer(Learner(llama.model, llama.processor, 48, sampling=sampling), OPEN)

    before = torch.get_rng_state()
    assert texts() == texts()
    assert texts(seed=1) != texts()
    assert texts(top_p=1e-9, seed=1) == texts(temperature=0.0)  # one token is left to draw
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("columns", [Columns(), Columns("text"), Columns("text", None, "category")])
def test_the_columns_of_rows_without_labels_are_their_texts(columns):
    row = {"id": 1, "text": "a film", "category": "good"}
    assert CLASSIFICATION.input_columns([row], columns).text == "text"
    assert CLASSIFICATION.input_columns([{"text": "a film"}], columns).text == "text"


@pytest.mark.parametrize("columns", [Columns(), Columns("a", "b"), Columns("a")])
@pytest.mark.parametrize("pair", [None, "second"])
def test_a_bare_text_becomes_a_row_with_the_columns_that_were_learned_or_is_refused(columns, pair):
    if columns.text and (columns.pair is None) is not (pair is None):
        with pytest.raises(SpecError, match="second"):
            CLASSIFICATION.text_row("a film", pair, columns)
        return
    rows = [CLASSIFICATION.text_row("a film", pair, columns)]
    example = CLASSIFICATION.inputs(rows, CLASSIFICATION.input_columns(rows, columns))[0]
    assert (example.text, example.pair, example.label) == ("a film", pair, None)


def test_few_answers_of_training_are_learned_and_offered_to_rows_without_answers():
    rows = [{"instruction": f"film {i}", "output": ("good", "bad")[i % 2]} for i in range(12)]
    learned = INSTRUCTION.examples({"train": Table(rows)}, Columns(), LabelHints())
    hints = LabelHints(learned_settings=learned.settings)
    again = INSTRUCTION.examples({"test": Table(rows[:1])}, Columns(), hints)  # too few to know it by itself
    assert again.splits["test"] == learned.splits["train"][:1]
    asked = INSTRUCTION.inputs([{"instruction": "film 0"}], Columns(), hints)[0]
    assert asked.candidates == learned.splits["train"][0].candidates == ("bad", "good")
