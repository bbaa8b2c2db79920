"""Answers in text: their token ids, how likely a model finds them, and which of several it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import JsonValue
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq

from rankfold.errors import DataError, SpecError
from rankfold.tasks.kinds.kind import IGNORED_LABEL, Collate
from rankfold.tasks.kinds.labelled import note_cut
from rankfold.tasks.kinds.learner import Features, Learner
from rankfold.tasks.scoring import NO_CHOICE, Scoring, named_choice


@dataclass(frozen=True, slots=True)
class Instruction:
    """One prompt with its answer, and the answers it competes with.

    Args:
        id: The row's.
        prompt: Without the model's chat template.
        answer: The text to learn; empty if it is not known.
        candidates: All answers that are possible, in order; empty if the answer is open.
    """

    id: int | str
    prompt: str
    answer: str = ""
    candidates: tuple[str, ...] = ()


def encode_answer(
    tokenizer: Any, instruction: Instruction, answer: str, max_length: int
) -> dict[str, list[int]]:
    """Tokenise one prompt with one answer; only the answer's tokens have labels.

    A prompt that is too long loses its beginning; an answer is never cut.

    Args:
        tokenizer: Its chat template frames the prompt, if it has one.
        instruction: Whose prompt to use.
        answer: The text after the prompt; the end-of-text token is added.
        max_length: The most tokens, prompt and answer together.

    Raises:
        DataError: If the answer alone is longer than `max_length`.
    """
    answer_ids = answer_token_ids(tokenizer, instruction, answer, max_length)
    prompt_ids = _prompt_token_ids(tokenizer, instruction.prompt)[-(max_length - len(answer_ids)) :]
    input_ids = prompt_ids + answer_ids
    return {
        "input_ids": input_ids,
        "attention_mask": [1] * len(input_ids),
        "labels": [IGNORED_LABEL] * len(prompt_ids) + answer_ids,
    }


def encode_prompts(tokenizer: Any, instructions: Sequence[Instruction], max_length: int) -> list[list[int]]:
    """Tokenise prompts up to where their answers begin; one that is too long loses its beginning."""
    token_ids = [_prompt_token_ids(tokenizer, item.prompt)[-max_length:] for item in instructions]
    note_cut("prompts", token_ids, max_length)
    return token_ids


def answer_token_ids(tokenizer: Any, instruction: Instruction, answer: str, max_length: int) -> list[int]:
    """Return the token ids of an answer with the end of text.

    Raises:
        DataError: If they leave no room for the prompt.
    """
    ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    if len(ids) >= max_length:
        raise DataError(
            f"the answer of '{instruction.id}' has {len(ids)} tokens, which leaves no room for its prompt; "
            f"raise --max-length above {len(ids)}."
        )
    return ids


def _prompt_token_ids(tokenizer: Any, prompt: str) -> list[int]:
    if tokenizer.chat_template is None:
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return begin + tokenizer(f"{prompt}\n\n", add_special_tokens=False)["input_ids"]
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_collator(tokenizer: Any) -> Collate:
    """Return the function that pads rows, and the labels of their tokens, to the longest of their batch."""
    collator: Any = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED_LABEL)
    return collator


def log_likelihoods(learner: Learner, rows: Sequence[Features]) -> list[tuple[float, int]]:
    """Return the log-likelihood of each row's labelled tokens, and their number."""
    scores = [(0.0, 0)] * len(rows)
    for indices, batch in learner.batches(rows, answer_collator(learner.processor)):
        targets = batch.pop("labels")[:, 1:]
        logits = learner.logits(batch)[:, :-1]
        is_labelled = targets != IGNORED_LABEL
        losses = functional.cross_entropy(logits[is_labelled], targets[is_labelled].cpu(), reduction="none")
        likelihoods = torch.zeros(targets.shape)
        likelihoods[is_labelled.cpu()] = -losses
        totals: list[float] = cast(Any, likelihoods.sum(1)).tolist()
        counts: list[int] = is_labelled.sum(1).tolist()
        for index, total, tokens in zip(indices, totals, counts, strict=True):
            scores[index] = (total, tokens)
    return scores


def choose(learner: Learner, questions: Sequence[Instruction]) -> list[int]:
    """Return the candidate that is the model's answer to each question, by its index.

    Args:
        learner: The model; its `scoring` says how the answer is found.
        questions: Instructions with candidates.
    """
    if learner.scoring == Scoring.GENERATED:
        return _choose_generated(learner, questions)
    return [scores.index(max(scores)) for scores in candidate_scores(learner, questions)]


def candidate_scores(learner: Learner, questions: Sequence[Instruction]) -> list[list[float]]:
    """Return the log-likelihood of each candidate of each question: a token's on average, or in total."""
    rows = [
        encode_answer(learner.processor, item, candidate, learner.max_length)
        for item in questions
        for candidate in item.candidates
    ]
    is_total = learner.scoring == Scoring.TOTAL_LIKELIHOOD
    likelihoods = iter(
        [total if is_total else total / tokens for total, tokens in log_likelihoods(learner, rows)]
    )
    return [[next(likelihoods) for _ in item.candidates] for item in questions]


def likeliest_answers(learner: Learner, questions: Sequence[Instruction]) -> list[dict[str, JsonValue]]:
    """Return the likeliest candidate of each question as text, with the share of every candidate."""
    answers: list[dict[str, JsonValue]] = []
    for item, scores in zip(questions, candidate_scores(learner, questions), strict=True):
        shares: list[float] = cast(Any, torch.tensor(scores, dtype=torch.float64).softmax(0)).tolist()
        text = item.candidates[scores.index(max(scores))]
        answers.append({"text": text, "probabilities": dict(zip(item.candidates, shares, strict=True))})
    return answers


def _choose_generated(learner: Learner, questions: Sequence[Instruction]) -> list[int]:
    """Let the model answer, and read which candidate it names."""
    predictions = [NO_CHOICE] * len(questions)
    for index, text in enumerate(generate_answers(learner, questions)):
        predictions[index] = named_choice(text, questions[index].candidates)
    return predictions


def generate_answers(learner: Learner, instructions: Sequence[Instruction]) -> list[str]:
    """Return the text that the model writes after each prompt, as the learner's `sampling` says."""
    check_room(learner)
    prompts = encode_prompts(learner.processor, instructions, learner.prompt_room)
    texts = [""] * len(prompts)
    for indices in learner.similar([len(prompt) for prompt in prompts]):
        batch = learner.generate([prompts[index] for index in indices])
        for index, text in zip(indices, batch, strict=True):
            texts[index] = text
    return texts


def check_room(learner: Learner) -> None:
    """Check that a text that is generated leaves room for its prompt.

    Raises:
        SpecError: If it does not.
    """
    if learner.prompt_room < 1:
        length, new_tokens = learner.generation_length or learner.max_length, learner.sampling.max_new_tokens
        raise SpecError(
            f"max_length is {length}, but {new_tokens} tokens of it are for the answer that is generated; "
            f"raise --max-length above {new_tokens}, or lower --max-new-tokens."
        )
