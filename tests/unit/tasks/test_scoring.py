"""Answers in a model's own words: which choice they name, and that nothing else in the batch matters."""

import peft
import pytest
import torch

import rankfold
from rankfold.errors import SpecError
from rankfold.models.base import resolve_model
from rankfold.tasks.kinds import Learner
from rankfold.tasks.kinds.answers import Instruction
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.kinds.learner import NEW_TOKENS
from rankfold.tasks.scoring import NO_CHOICE, Scoring, named_choice

NUMBERED_ANSWERS = tuple(f"the correct answer is answer{number}" for number in range(1, 6))
TRUTH = ("the correct answer is false", "the correct answer is true")
PROMPTS = ["the film was good ?", "was the music bad and the story awful ?", "a story", "film " * 30]
QUESTIONS = [
    Instruction(i, prompt, ("is true", "is false")[i % 2], ("is false", "is true"))
    for i, prompt in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return INSTRUCTION.load(resolve_model(str(tiny_llama)))


@pytest.mark.parametrize(
    ("text", "candidates", "index"),
    [
        ("the correct answer is answer2", NUMBERED_ANSWERS, 1),
        ("Answer3.", NUMBERED_ANSWERS, 2),
        ("answer1 or answer2", NUMBERED_ANSWERS, 0),
        ("answer11", NUMBERED_ANSWERS, NO_CHOICE),
        ("the correct answer", NUMBERED_ANSWERS, NO_CHOICE),
        ("", NUMBERED_ANSWERS, NO_CHOICE),
        ("True, not false", TRUTH, 1),
        ("untrue", TRUTH, NO_CHOICE),
        ("ending4\n", tuple(f"is ending{number}" for number in range(1, 5)), 3),
        ("it is Paris!", ("London", "Paris"), 1),
        ("New York City", ("New York", "New York City"), 1),
        ("a then A", ("A", "a"), 1),
    ],
)
def test_the_choice_that_is_named_first_is_meant(text, candidates, index):
    assert named_choice(text, candidates) == index


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_answer_names_itself(count):
    candidates = NUMBERED_ANSWERS[:count]
    assert [named_choice(candidate, candidates) for candidate in candidates] == list(range(count))


def _ids(llama, prompts):
    return [llama.processor(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]


def _generate(model, loaded, prompts):
    return Learner(model, loaded.processor, 60).generate(prompts, range(len(prompts)))


def test_what_is_generated_does_not_depend_on_the_rest_of_the_batch(llama):
    together = _generate(llama.model, llama, _ids(llama, PROMPTS))
    alone = [_generate(llama.model, llama, _ids(llama, [prompt]))[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 1


def test_what_is_generated_is_the_likeliest_token_each_time_whatever_the_model_s_own_settings(llama):
    (ids,) = _ids(llama, PROMPTS[:1])
    expected = list(ids)
    while len(expected) < len(ids) + NEW_TOKENS:
        token = llama.model(torch.tensor([expected])).logits[0, -1].argmax().item()
        if token == llama.processor.eos_token_id:
            break
        expected.append(token)
    own = llama.model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty = True, 5.0, 3.0
    try:
        assert _generate(llama.model, llama, [ids]) == [
            llama.processor.decode(expected[len(ids) :], skip_special_tokens=True)
        ]
    finally:
        own.do_sample, own.temperature, own.repetition_penalty = False, None, None


@pytest.mark.parametrize("method", ["effilora", "mix_lora", "graph_moe"])
def test_adapters_with_a_router_write_the_same_with_and_without_what_is_remembered(tiny_llama, method):
    # What was read before is train_part from one token to the next; a router must not notice.
    loaded = INSTRUCTION.load(resolve_model(str(tiny_llama)))
    config = rankfold.config(method, r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(loaded.model, config).eval()
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    texts = []
    for remembers in (True, False):
        model.config.use_cache = remembers
        texts.append(_generate(model, loaded, _ids(loaded, PROMPTS)))
    assert texts[0] == texts[1]
    with model.disable_adapter():
        assert _generate(model, loaded, _ids(loaded, PROMPTS)) != texts[0]


def _evaluate(llama, scoring, *, batch_size=3, max_length=60, items=QUESTIONS):
    learner = Learner(llama.model, llama.processor, max_length, batch_size, scoring=scoring)
    return INSTRUCTION.evaluate(learner, items, ())


def _speaking(monkeypatch, texts):
    """Let every model say these texts in turn, whatever it is asked."""
    replies = iter(texts)
    monkeypatch.setattr(Learner, "generate", lambda _, prompts, _names: [next(replies) for _ in prompts])


def test_an_answer_that_names_nothing_is_wrong_and_counted(llama, monkeypatch):
    _speaking(monkeypatch, ["false", "perhaps", "true", "it is false"])
    result = _evaluate(llama, Scoring.GENERATED, batch_size=1)
    # Batches are of similar length: the shortest prompt comes first.
    assert result.predictions == [NO_CHOICE, 1, 0, 0]
    assert result.metrics["unparsed"] == 0.25
    assert result.metrics["accuracy"] == 0.25
    assert result.labels == [1, 0, 1, 0]


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_generated_answers_do_not_depend_on_the_batch_size(llama, batch_size):
    one, other = (_evaluate(llama, Scoring.GENERATED, batch_size=size) for size in (3, batch_size))
    assert (one.predictions, one.metrics["unparsed"]) == (other.predictions, other.metrics["unparsed"])


def test_generating_leaves_the_model_as_it_was(llama):
    llama.model.train()
    try:
        _evaluate(llama, Scoring.GENERATED)
        assert llama.model.training
    finally:
        llama.model.eval()


def test_a_whole_likelihood_is_not_divided_by_the_number_of_tokens(llama):
    choices = ("true", "correct answer is true and good")
    items = [Instruction(i, prompt, choices[0], choices) for i, prompt in enumerate(PROMPTS)]
    whole = _evaluate(llama, Scoring.TOTAL_LIKELIHOOD, items=items)
    for item, prediction in zip(items, whole.predictions, strict=True):
        totals = []
        for choice in choices:
            loss = _evaluate(llama, Scoring.LIKELIHOOD, items=[Instruction(0, item.prompt, choice)]).loss
            totals.append(loss * (len(choice.split()) + 1))
        assert prediction == totals.index(min(totals))
    assert "unparsed" not in whole.metrics


def test_a_length_without_room_for_a_prompt_is_refused(llama):
    with pytest.raises(SpecError, match=f"max_length is {NEW_TOKENS}"):
        INSTRUCTION.check(
            Learner(llama.model, llama.processor, NEW_TOKENS, scoring=Scoring.GENERATED), QUESTIONS
        )
