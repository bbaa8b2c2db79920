"""Examples as token ids, and batches of them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.errors import DataError
from rankfold.tasks.kinds.examples import Example, Instruction

logger = logging.getLogger("rankfold.train")

IGNORED = -100
"""The label of a token that does not count in the loss; torch's own convention."""

Encoded = Mapping[str, Any]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int
) -> list[dict[str, Any]]:
    """Tokenise texts or pairs, cut to `max_length` tokens; nothing is padded yet."""
    if not examples:
        return []
    texts = [example.text for example in examples]
    pairs = [example.pair or "" for example in examples] if examples[0].pair is not None else None
    encoded = cast(Any, tokenizer)(texts, pairs, truncation=True, max_length=max_length)
    _note_cut("texts", encoded["input_ids"], max_length)
    columns: dict[str, list[Any]] = dict(encoded)
    columns["labels"] = [example.label for example in examples]
    return [{name: values[index] for name, values in columns.items()} for index in range(len(examples))]


def encode_instructions(
    tokenizer: PreTrainedTokenizerBase, instructions: Sequence[Instruction], max_length: int
) -> list[dict[str, list[int]]]:
    """Tokenise prompts with their answers; only the answer's tokens have labels."""
    encoded = [encode_answer(tokenizer, item, item.answer, max_length) for item in instructions]
    _note_cut("prompts", [row["input_ids"] for row in encoded], max_length)
    return encoded


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, instructions: Sequence[Instruction], max_length: int
) -> list[list[int]]:
    """Tokenise prompts up to where their answers begin; one that is too long loses its beginning."""
    encoded = [_prompt_ids(tokenizer, item.prompt)[-max_length:] for item in instructions]
    _note_cut("prompts", encoded, max_length)
    return encoded


def _note_cut(what: str, encoded: Sequence[Sequence[int]], max_length: int) -> None:
    cut = sum(len(ids) == max_length for ids in encoded)
    if cut:
        logger.info(
            "%d of %d %s reach %d tokens and may have been cut; --max-length takes more.",
            cut,
            len(encoded),
            what,
            max_length,
        )


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, item: Instruction, answer: str, max_length: int
) -> dict[str, list[int]]:
    """Tokenise one prompt with one answer.

    A prompt that is too long loses its beginning; an answer is never cut.

    Args:
        tokenizer: Its chat template frames the prompt, if it has one.
        item: Whose prompt to use.
        answer: The text after the prompt; the end-of-text token is added.
        max_length: The most tokens, prompt and answer together.

    Raises:
        DataError: If the answer alone is longer than `max_length`.
    """
    answer_ids = _answer_ids(tokenizer, item, answer, max_length)
    prompt_ids = _prompt_ids(tokenizer, item.prompt)[-(max_length - len(answer_ids)) :]
    input_ids = prompt_ids + answer_ids
    return {
        "input_ids": input_ids,
        "attention_mask": [1] * len(input_ids),
        "labels": [IGNORED] * len(prompt_ids) + answer_ids,
    }


def check_answers(
    tokenizer: PreTrainedTokenizerBase, instructions: Sequence[Instruction], max_length: int
) -> None:
    """Check that every answer that will be asked for leaves room for a prompt.

    Raises:
        DataError: If one does not.
    """
    owners = {answer: item for item in instructions for answer in (item.answer, *item.candidates)}
    for answer, item in owners.items():
        _answer_ids(tokenizer, item, answer, max_length)


def _answer_ids(
    tokenizer: PreTrainedTokenizerBase, item: Instruction, answer: str, max_length: int
) -> list[int]:
    ids = cast("list[int]", cast(Any, tokenizer)(answer, add_special_tokens=False)["input_ids"])
    if tokenizer.eos_token_id is not None:
        ids = [*ids, cast(int, tokenizer.eos_token_id)]
    if len(ids) >= max_length:
        raise DataError(
            f"the answer of '{item.id}' has {len(ids)} tokens, which leaves no room for its prompt; "
            f"raise --max-length above {len(ids)}."
        )
    return ids


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    anyhow = cast(Any, tokenizer)
    if anyhow.chat_template is None:
        begin = [] if tokenizer.bos_token_id is None else [cast(int, tokenizer.bos_token_id)]
        return begin + cast("list[int]", anyhow(f"{prompt}\n\n", add_special_tokens=False)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    text = anyhow.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return cast("list[int]", anyhow(text, add_special_tokens=False)["input_ids"])


def make_collator(tokenizer: PreTrainedTokenizerBase, *, tokens_have_labels: bool) -> Any:
    """Return what pads rows to the longest of their batch.

    Args:
        tokenizer: Whose padding token to use.
        tokens_have_labels: Whether labels are one a token (instructions) or one a row.
    """
    if tokens_have_labels:
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    return DataCollatorWithPadding(tokenizer)
