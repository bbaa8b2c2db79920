"""Answers in a model's own words: prompts continued greedily, so that the same prompt has one answer."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.train.quiet import quiet_libraries

NEW_TOKENS = 32
"""The most tokens of an answer: several times those of "the correct answer is answer3"."""


def continued(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
) -> list[str]:
    """Return what a model adds to each prompt, up to its end of text.

    Shorter prompts are padded on the left and the padding is masked, so that what is added does not depend on
    the other prompts.

    Args:
        model: On the device, as it is to be used; adapters included.
        tokenizer: The model's.
        prompts: Token ids.
        device: Where the model is.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), cast(int, tokenizer.pad_token_id))
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with quiet_libraries():
        tokens = cast(Any, model).generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_greedy(tokenizer),
        )
    return cast("list[str]", cast(Any, tokenizer).batch_decode(tokens[:, width:], skip_special_tokens=True))


def _greedy(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    # Whatever is not said here would be taken from the model's own settings, made for conversation.
    return GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
