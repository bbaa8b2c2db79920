"""Token ids: the prompt does not count in the loss, the answer is never cut, pairs are told apart."""

import pytest

from rankfold.errors import AdapterFileError, DataError
from rankfold.models.base import resolve_model
from rankfold.tasks.kinds import Learner
from rankfold.tasks.kinds.answers import IGNORED_LABEL, Instruction, encode_answers
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.kinds.labelled import Example
from rankfold.tasks.kinds.regression import KIND as REGRESSION
from rankfold.tasks.kinds.regression import Scale
from tests.support.tiny_models import VOCABULARY, write_llama

CHAT = (
    "{% for message in messages %}question : {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} answer :{% endif %}"
)
LONG = " ".join(["film"] * 100)


@pytest.fixture(scope="module")
def bert_tokenizer(tiny_bert):
    return REGRESSION.load(resolve_model(str(tiny_bert))).processor


@pytest.fixture(scope="module")
def llama_tokenizer(tiny_llama):
    return INSTRUCTION.load(resolve_model(str(tiny_llama))).processor


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory):
    folder = write_llama(tmp_path_factory.mktemp("chat") / "llama", chat_template=CHAT)
    return INSTRUCTION.load(resolve_model(str(folder))).processor


@pytest.fixture(params=["plain", "chat"])
def tokenizer(request, llama_tokenizer, chat_tokenizer):
    return {"plain": llama_tokenizer, "chat": chat_tokenizer}[request.param]


def _encode_answer(tokenizer, instruction, answer, max_length):
    return encode_answers(Learner(None, tokenizer, max_length), [(instruction, answer)])[0]


def _encode(tokenizer, examples, max_length):
    return REGRESSION.encode(Learner(None, tokenizer, max_length), examples, training=True)


def test_a_pair_is_two_segments(bert_tokenizer):
    row = _encode(bert_tokenizer, [Example(0, "good film", "bad film", 1)], 32)[0]
    assert set(row["token_type_ids"]) == {0, 1}
    assert row["labels"] == 1


@pytest.mark.parametrize("pair", [None, LONG])
def test_a_text_is_cut_to_the_most_tokens(bert_tokenizer, pair):
    assert len(_encode(bert_tokenizer, [Example(0, LONG, pair, 1)], 12)[0]["input_ids"]) == 12


@pytest.mark.parametrize(("text", "is_told"), [(LONG, True), ("film", False)])
def test_texts_that_may_have_been_cut_are_told(bert_tokenizer, text, is_told, caplog):
    with caplog.at_level("INFO", logger="rankfold"):
        _encode(bert_tokenizer, [Example(0, text, None, 0), Example(1, "film", None, 0)], 9)
    assert ("1 of 2 texts reach 9 tokens and may have been cut; --max-length" in caplog.text) is is_told


def test_only_the_answer_has_labels_and_it_ends(tokenizer):
    row = _encode_answer(tokenizer, Instruction(0, "the film ?", "true"), "true", 32)
    labelled = [token for token in row["labels"] if token != IGNORED_LABEL]
    assert labelled == [VOCABULARY["true"], VOCABULARY["[SEP]"]]
    assert row["input_ids"][-2:] == labelled
    assert len(row["labels"]) == len(row["input_ids"]) == len(row["attention_mask"])


def test_a_chat_template_frames_the_prompt(chat_tokenizer):
    row = _encode_answer(chat_tokenizer, Instruction(0, "film", "true"), "true", 32)
    words = ("question", ":", "film", "answer", ":", "true", "[SEP]")
    assert row["input_ids"] == [VOCABULARY[word] for word in words]


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays(tokenizer):
    row = _encode_answer(tokenizer, Instruction(0, LONG, "is true"), "is true", 10)
    assert len(row["input_ids"]) == 10
    assert [token for token in row["labels"] if token != IGNORED_LABEL] == row["input_ids"][-3:]


def test_an_answer_without_room_for_a_prompt_is_refused(tokenizer):
    with pytest.raises(DataError, match="--max-length"):
        _encode_answer(tokenizer, Instruction("x7", "film", LONG), LONG, 20)


def test_padding_of_a_batch_does_not_count(llama_tokenizer):
    items = [Instruction(0, "film", "true"), Instruction(1, "the film was a story", "false")]
    learner = Learner(None, llama_tokenizer, 32)
    batch = INSTRUCTION.collate(learner)(INSTRUCTION.encode(learner, items, training=True))
    assert batch["input_ids"].shape == batch["labels"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED_LABEL).all()
    assert (batch["labels"] != IGNORED_LABEL).sum(1).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("scale", "fault"),
    [
        (None, r"scale' in .* is null"),
        ([1, 2], r"scale' in .* is \[1, 2\]"),
        ({"mean": 0.0}, "no mean and standard deviation"),
        ({"mean": 0.0, "std": 1.0, "unit": "m"}, "no mean and standard deviation"),
        ({"mean": "1", "std": 1.0}, r"scale\.mean' in .* is \"1\", no finite number"),
        ({"mean": None, "std": 1.0}, r"scale\.mean'"),
        ({"mean": 1e300, "std": 1.0}, r"settings\.scale' in .*, which no labels have"),
        ({"mean": 1.0, "std": 1e-17}, r"settings\.scale' in .*, which no labels have"),
        ({"mean": 0.0, "std": 1e200}, r"settings\.scale' in .*, which no labels have"),
        ({"mean": 0.0, "std": 0}, r"scale\.std' in .* is 0, no finite number above 0"),
        ({"mean": 0.0, "std": -1}, r"scale\.std'"),
        ({"mean": 0.0, "std": True}, r"scale\.std'"),
        ({"mean": 0.0, "std": 10**400}, r"scale\.std'"),
    ],
)
def test_a_scale_that_was_changed_by_hand_is_refused(scale, fault):
    with pytest.raises(AdapterFileError, match=f"{fault}.*; restore the file"):
        Scale.of({"scale": scale})
    assert Scale.of({}) == Scale()
    assert Scale.of({"scale": {"mean": 3, "std": 0.5}}) == Scale(3, 0.5)


@pytest.mark.parametrize("unit", [(0.2, 0.0), (5.0, 0.0), (1000.0, 3.0), (-1e-3, 7.0)])
def test_what_is_learned_does_not_depend_on_the_unit_of_the_labels(unit):
    """A start or a rate that is found for one scale of labels holds for all."""
    labels = [0.0, 1.5, 2.0, 4.75, 5.0]
    factor, offset = unit
    others = [factor * label + offset for label in labels]
    learned = [Scale.fit(labels).standardise(label) for label in labels]
    sign = 1 if factor > 0 else -1
    assert [sign * Scale.fit(others).standardise(label) for label in others] == pytest.approx(learned)
