"""Running a model over many rows: in batches of similar length, without gradients, as it is in use."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.train.evaluation.encode import Encoded, make_collator
from rankfold.train.models.hardware import autocast


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
