"""Running a model over many rows: in batches of similar length, without gradients, as it is in use."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.models.hardware import autocast
from rankfold.progress import quiet_libraries
from rankfold.tasks.kinds.encode import Encoded, make_collator


@final
@dataclass(frozen=True, slots=True)
class Forward:
    """Knows how to run a model.

    Args:
        tokenizer: The model's.
        device: Where the model is.
        precision: `fp32` or `bf16`.
        batch_size: Rows at a time.
    """

    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    precision: str
    batch_size: int

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits of a batch, in single precision on the CPU."""
        with self.measuring(model):
            return model(**batch).logits.float().cpu()

    @contextmanager
    def measuring(self, model: nn.Module) -> Generator[None]:
        """Have a model as it is in use while the block runs: no dropout, no gradients."""
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                yield
        finally:
            model.train(was_training)

    def batches(
        self, rows: Sequence[Encoded], *, tokens_have_labels: bool
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yield padded batches of rows, each with the positions of its rows."""
        collate: Any = make_collator(self.tokenizer, tokens_have_labels=tokens_have_labels)
        for indices in self.similar([row["input_ids"] for row in rows]):
            batch: dict[str, Tensor] = collate([dict(rows[index]) for index in indices])
            yield indices, {name: value.to(self.device) for name, value in batch.items()}

    def similar(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield the positions of rows of similar length, a batch at a time."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


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
