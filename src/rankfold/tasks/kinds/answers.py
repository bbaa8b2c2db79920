"""Answers in text: their token ids, how likely a model finds them, and which of several it gives."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from pydantic import JsonValue
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq

from rankfold.errors import DataError, SpecError
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Table
from rankfold.tasks.kinds.chat_template import ASSISTANT, USER, ChatTemplate, Message, Segment
from rankfold.tasks.kinds.kind import IGNORED_LABEL, Collate, Examples, LabelHints, TaskKind
from rankfold.tasks.kinds.learner import Features, Learner, check_finite
from rankfold.tasks.kinds.packing import SharedPrompt, collate_packed, shared_log_likelihoods
from rankfold.tasks.metrics import ANSWER_LOSS, TEXT_METRICS
from rankfold.tasks.scoring import NO_CHOICE, Scoring, named_choice

logger = logging.getLogger("rankfold.tasks")

_CHUNK = 256
"""Rows that are tokenised at a time."""

_MOST_WRITTEN = 256
"""The most tokens of an answer that is written to be compared."""


class AnsweredKind(TaskKind):
    """Kinds that answer in text; examples have an `answer`, and the `candidates` that it competes with."""

    loss_per_token: ClassVar[bool] = True
    reads_training: ClassVar[bool] = True  # its answers are the ones to choose from, if they are few

    def strata(self, table: Table, columns: Columns, hints: LabelHints) -> list[None]:
        """Return nothing for each row: answers in text are no classes whose shares could be kept."""
        return [None] * len(table.rows)

    def metrics(self, examples: Examples, task_metrics: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the loss of answers, behind the accuracy where there are candidates."""
        last_split = list(examples.splits.values())[-1]
        return ("accuracy", ANSWER_LOSS) if any(item.candidates for item in last_split) else (ANSWER_LOSS,)

    def possible_metrics(self, examples: Examples) -> tuple[str, ...]:
        """Return the accuracy where there are candidates, else the loss and the metrics of written texts."""
        usual = self.metrics(examples)
        return usual[:1] if len(usual) > 1 else (*usual, *TEXT_METRICS)

    def label(self, example: Any) -> int | None:
        """Return the index of the right candidate; None if the answer is open."""
        return example.candidates.index(example.answer) if example.answer in example.candidates else None

    def reference(self, example: Any) -> str:
        """Return the answer to learn."""
        return example.answer

    @property
    def predicts_at_end(self) -> bool:
        """Whether answers wait for the end of training; they take long."""
        return True


@dataclass(frozen=True, slots=True)
class Instruction:
    """One prompt with its answer, and the answers it competes with.

    Args:
        id: The row's.
        prompt: Without the model's chat template.
        answer: The text to learn; empty if it is not known.
        candidates: All answers that are possible, in order; empty if the answer is open.
        turns: All turns before the answer, the prompt among them, where the row says who speaks.
        tools: The descriptions of the tools that a conversation offers.
        reply: The turn to learn, where it is more than the text of the answer.
        choices: The texts that the candidates stand for, where the row brings them.
    """

    id: int | str
    prompt: str
    answer: str = ""
    candidates: tuple[str, ...] = ()
    turns: tuple[Message, ...] = ()
    choices: tuple[str, ...] = ()
    tools: tuple[Any, ...] = ()
    reply: Message | None = None

    @property
    def choice_names(self) -> tuple[str, ...]:
        """The candidates as people read them."""
        return self.choices or self.candidates


@dataclass(frozen=True, slots=True)
class _Part:
    """Token ids of a part of a row, and whether they count in the loss."""

    ids: list[int]
    is_learned: bool


# Encoding


def encode_answers(
    learner: Learner, answers: Sequence[tuple[Instruction, str]], *, is_compared: bool = False
) -> list[dict[str, list[int]]]:
    """Tokenise prompts, each with one answer; only the assistant's tokens have labels, in every turn.

    A prompt that is too long loses its beginning; an answer is never cut.

    Args:
        learner: Its chat template frames the prompts, if there is one.
        answers: Instructions with the text after the prompt; the end-of-text token is added.
        is_compared: Whether only these answers have labels, not the earlier turns of the assistant.

    Raises:
        DataError: If an answer leaves no room for its prompt, with how many do.
        SpecError: If there are conversations and no chat template.
    """
    rows: list[dict[str, list[int]]] = []
    too_long: list[tuple[int, Instruction]] = []
    cut = 0
    with learner.reporting(len(answers), "reading texts") as report:
        for start in range(0, len(answers), _CHUNK):
            chunk = answers[start : start + _CHUNK]
            for (item, _), parts in zip(
                chunk, _tokenise(learner, chunk, is_compared=is_compared), strict=True
            ):
                answer = len(parts[-1].ids)
                if answer >= learner.max_length:
                    too_long.append((answer, item))
                    continue
                cut += sum(len(part.ids) for part in parts) > learner.max_length
                rows.append(_as_row(parts, learner.max_length))
            report(start + len(chunk))
    if too_long:
        raise _no_room(too_long, len(answers))
    if cut:
        logger.info(
            "%d of %d prompts have more than %d tokens with their answers and lose their beginning; "
            "--max-length takes more.",
            cut,
            len(answers),
            learner.max_length,
        )
    return rows


def encode_prompts(learner: Learner, instructions: Sequence[Instruction], max_length: int) -> list[list[int]]:
    """Tokenise prompts up to where their answers begin; one that is too long loses its beginning."""
    prompts = [parts[0].ids for parts in _tokenise(learner, [(item, None) for item in instructions])]
    cut = sum(len(ids) > max_length for ids in prompts)
    if cut:
        logger.info(
            "%d of %d prompts have more than %d tokens and lose their beginning; --max-length takes more.",
            cut,
            len(prompts),
            max_length,
        )
    return [ids[-max_length:] for ids in prompts]


def _tokenise(
    learner: Learner, answers: Sequence[tuple[Instruction, str | None]], *, is_compared: bool = True
) -> Iterator[list[_Part]]:
    """Yield the tokens of each prompt and its answer; an answer that is None is left out."""
    tokenizer = learner.processor
    template = learner.chat_template
    segments = [_segments(template, item, answer, is_compared=is_compared) for item, answer in answers]
    texts = [segment.text for row in segments for segment in row]
    token_ids: Iterator[list[int]] = iter(
        tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    )
    begin: int | None = tokenizer.bos_token_id if template.source is None else None
    for (_, answer), row in zip(answers, segments, strict=True):
        parts = [_Part(next(token_ids), segment.is_learned) for segment in row]
        if begin is not None:
            parts[0].ids.insert(0, begin)
        ending = [] if answer is None or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if parts[-1].ids[-1:] != ending:
            parts[-1].ids.extend(ending)
        yield parts


def _segments(
    template: ChatTemplate, item: Instruction, answer: str | None, *, is_compared: bool
) -> list[Segment]:
    turns = item.turns or (Message(USER, item.prompt),)
    template = replace(template, tools=item.tools)
    if item.turns and answer is not None and not is_compared:
        return template.segments([*turns, item.reply or Message(ASSISTANT, answer)], item.id)
    is_bare = template.source is None and not item.turns
    prompt = f"{item.prompt}\n\n" if is_bare else template.prompt(turns, item.id)
    answers = [] if answer is None else [Segment(answer, is_learned=True)]
    return [Segment(prompt, is_learned=False), *answers]


def _as_row(parts: Sequence[_Part], max_length: int) -> dict[str, list[int]]:
    input_ids = [token for part in parts for token in part.ids]
    labels = [token if part.is_learned else IGNORED_LABEL for part in parts for token in part.ids]
    input_ids, labels = input_ids[-max_length:], labels[-max_length:]
    return {"input_ids": input_ids, "attention_mask": [1] * len(input_ids), "labels": labels}


def _no_room(too_long: Sequence[tuple[int, Instruction]], rows: int) -> DataError:
    longest, count = max(length for length, _ in too_long), len(too_long)
    subject = f"the answer of '{too_long[0][1].id}' has"
    if count > 1:
        subject = f"{count} of {rows} answers, the first of '{too_long[0][1].id}', have up to"
    return DataError(
        f"{subject} {longest} tokens, which leaves no room for {'a' if count > 1 else 'its'} prompt; "
        f"raise --max-length above {longest}, or remove what is longer."
    )


def answer_collator(learner: Learner) -> Collate:
    """Return the function that pads rows, and the labels of their tokens, to the longest of their batch."""
    collator: Any = DataCollatorForSeq2Seq(learner.processor, label_pad_token_id=IGNORED_LABEL)

    def collate(rows: Sequence[Features]) -> dict[str, Any]:
        if any("sequence_ids" in row for row in rows):
            return collate_packed(learner, rows)
        return dict(collator(rows))

    return collate


# Likelihoods


def log_likelihoods(learner: Learner, rows: Sequence[Features]) -> list[tuple[float, int]]:
    """Return the log-likelihood of each row's labelled tokens, and their number."""
    scores = [(0.0, 0)] * len(rows)
    done = 0
    with learner.reporting(len(rows), "measuring answers") as report:
        for indices, batch in learner.batches(rows, answer_collator(learner)):
            targets = batch.pop("labels")[:, 1:]
            logits = learner.logits(batch)[:, :-1]
            is_labelled = targets != IGNORED_LABEL
            losses = functional.cross_entropy(
                logits[is_labelled], targets[is_labelled].cpu(), reduction="none"
            )
            likelihoods = torch.zeros(targets.shape, dtype=logits.dtype)
            likelihoods[is_labelled.cpu()] = -losses
            totals: list[float] = cast(Any, likelihoods.sum(1)).tolist()
            counts: list[int] = is_labelled.sum(1).tolist()
            for index, total, tokens in zip(indices, totals, counts, strict=True):
                scores[index] = (total, tokens)
            done += len(indices)
            report(done)
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
    """Return the log-likelihood of each candidate of each question: a token's on average, or in total.

    The model reads a prompt once for all its candidates, where it can.

    Raises:
        AdapterFileError: If one is not a finite number.
    """
    pairs = [(item, candidate) for item in questions for candidate in item.candidates]
    rows = encode_answers(learner, pairs, is_compared=True)
    is_total = learner.scoring == Scoring.TOTAL_LIKELIHOOD
    prompts = SharedPrompt.group(rows)
    totals = shared_log_likelihoods(learner, prompts, lambda part: log_likelihoods(learner, part))
    values = [total if is_total else total / tokens for total, tokens in totals]
    check_finite(torch.tensor(values), [item.id for item, _ in pairs])
    likelihoods = iter(values)
    return [[next(likelihoods) for _ in item.candidates] for item in questions]


def likeliest_answers(learner: Learner, questions: Sequence[Instruction]) -> list[dict[str, JsonValue]]:
    """Return the likeliest candidate of each question as text, with the share of every candidate."""
    answers: list[dict[str, JsonValue]] = []
    for item, scores in zip(questions, candidate_scores(learner, questions), strict=True):
        shares: list[float] = cast(Any, torch.tensor(scores, dtype=torch.float64).softmax(0)).tolist()
        names = item.choice_names
        text = names[scores.index(max(scores))]
        answers.append({"text": text, "probabilities": dict(zip(names, shares, strict=True))})
    return answers


# Generated texts


def _choose_generated(learner: Learner, questions: Sequence[Instruction]) -> list[int]:
    """Let the model answer, and read which candidate it names."""
    predictions = [NO_CHOICE] * len(questions)
    for index, text in enumerate(generate_answers(learner, questions)):
        predictions[index] = named_choice(text, questions[index].candidates)
    return predictions


def generate_answers(learner: Learner, instructions: Sequence[Instruction]) -> list[str]:
    """Return the text that the model writes after each prompt, as the learner's `sampling` says."""
    check_room(learner)
    prompts = encode_prompts(learner, instructions, learner.prompt_room)
    texts = [""] * len(prompts)
    done = 0
    with learner.reporting(len(prompts), "writing answers") as report:
        for indices in learner.similar([len(prompt) for prompt in prompts]):
            names = [instructions[index].id for index in indices]
            batch = learner.generate([prompts[index] for index in indices], names)
            for index, text in zip(indices, batch, strict=True):
                texts[index] = text
            done += len(indices)
            report(done)
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


def write_answers(learner: Learner, examples: Sequence[Instruction]) -> list[str]:
    """Return the texts that the model writes, with as many tokens as the longest right answer at most."""
    tokenizer = learner.processor
    token_ids = tokenizer([item.answer for item in examples], add_special_tokens=False)["input_ids"]
    longest = 1 + max(map(len, token_ids))
    room = max(1, min(longest, _MOST_WRITTEN, learner.max_length // 2))
    sampling = replace(learner.sampling, max_new_tokens=room)
    return [text.strip() for text in generate_answers(replace(learner, sampling=sampling), examples)]
