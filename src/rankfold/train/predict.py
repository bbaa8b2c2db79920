"""Measuring a model on held-out examples: loss, metrics, and each prediction."""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.errors import SpecError, TrainingError
from rankfold.train.encode import (
    IGNORED,
    encode_answer,
    encode_examples,
    encode_instructions,
    encode_prompt,
    make_collator,
)
from rankfold.train.examples import Example, Examples, Instruction
from rankfold.train.generate import NEW_TOKENS, continued
from rankfold.train.hardware import autocast
from rankfold.train.metrics import ANSWER_LOSS, UNPARSED, measure
from rankfold.train.models import Kind
from rankfold.train.scoring import NOTHING_NAMED, Scoring, named_choice

_Row = TypeVar("_Row", bound=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model did on a split.

    Args:
        loss: Mean loss: cross-entropy or squared error of a row, or cross-entropy of an answer's token.
        metrics: By name.
        ids: Which examples were predicted; instructions without candidates have only a loss.
        labels: What was right: class ids, numbers, or indices of candidates.
        predictions: What the model said; -1 where its text names no candidate.
    """

    loss: float
    metrics: dict[str, float]
    ids: list[int | str] = field(default_factory=list[int | str])
    labels: list[int] | list[float] = field(default_factory=list[int])
    predictions: list[int] | list[float] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Knows how to run a model over examples.

    Args:
        tokenizer: The model's.
        device: Where the model is.
        precision: `fp32` or `bf16`.
        batch_size: Rows at a time.
        max_length: The most tokens of a row; what is generated counts.
        scoring: How the answer to a question with choices is found; as `LIKELIHOOD` if None.

    Raises:
        SpecError: If `max_length` leaves no room for a prompt beside what is generated.
    """

    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    precision: str
    batch_size: int
    max_length: int
    scoring: Scoring | None = None

    def __post_init__(self) -> None:
        """Check that there is room for a prompt."""
        if self.scoring is Scoring.GENERATED and self.max_length <= NEW_TOKENS:
            raise SpecError(
                f"max_length is {self.max_length}, but {NEW_TOKENS} tokens of it are for the answer that is "
                f"generated; raise --max-length above {NEW_TOKENS}."
            )

    def measure(
        self,
        model: nn.Module,
        examples: Examples,
        split: str,
        metrics: Sequence[str],
        *,
        is_final: bool = True,
    ) -> Evaluation:
        """Measure a model on a split.

        Args:
            model: On the evaluator's device.
            examples: Holds the split.
            split: Its name.
            metrics: What to measure; instructions have the loss and, with candidates, the accuracy.
            is_final: False leaves out the choice among candidates, which takes longer than the loss.

        Raises:
            TrainingError: If the loss is not a finite number.
        """
        if examples.kind is not Kind.INSTRUCTION:
            evaluation = self._labelled(model, examples.labelled[split], examples.kind, metrics)
        elif is_final:
            evaluation = self._choices(model, examples.instructions[split])
        else:
            evaluation = self._answers(model, examples.instructions[split])
        if not math.isfinite(evaluation.loss):
            raise TrainingError(
                f"the loss on the split '{split}' is {evaluation.loss}; train with a lower learning rate, "
                "or use --precision fp32."
            )
        return evaluation

    def _labelled(
        self, model: nn.Module, examples: Sequence[Example], kind: Kind, metrics: Sequence[str]
    ) -> Evaluation:
        rows = encode_examples(self.tokenizer, examples, self.max_length)
        chunks: list[Tensor] = []
        order: list[int] = []
        for indices, batch in self._batches(rows, tokens_have_labels=False):
            batch.pop("labels")
            chunks.append(self._logits(model, batch))
            order += indices
        outputs = torch.cat(chunks)[torch.tensor(order).argsort()]
        labels = torch.tensor([example.label for example in examples])
        if kind is Kind.REGRESSION:
            values = outputs.squeeze(-1)
            loss = functional.mse_loss(values, labels.float()).item()
        else:
            values = outputs.argmax(-1)
            loss = functional.cross_entropy(outputs, labels).item()
        right = _list(labels)
        predictions = _list(values)
        return Evaluation(
            loss,
            # A diverged model has no metric; its loss says so.
            measure(metrics, right, predictions) if math.isfinite(loss) else {},
            [example.id for example in examples],
            right,
            predictions,
        )

    def _answers(self, model: nn.Module, instructions: Sequence[Instruction]) -> Evaluation:
        scores = self._answer_scores(
            model, encode_instructions(self.tokenizer, instructions, self.max_length)
        )
        loss = -sum(total for total, _ in scores) / sum(tokens for _, tokens in scores)
        return Evaluation(loss, {ANSWER_LOSS: loss})

    def _choices(self, model: nn.Module, instructions: Sequence[Instruction]) -> Evaluation:
        evaluation = self._answers(model, instructions)
        asked = [item for item in instructions if item.candidates]
        if not asked:
            return evaluation
        generates = self.scoring is Scoring.GENERATED
        predictions = self._named(model, asked) if generates else self._likeliest(model, asked)
        labels = [item.candidates.index(item.answer) for item in asked]
        metrics = measure(("accuracy",), labels, predictions)
        if generates:
            metrics[UNPARSED] = predictions.count(NOTHING_NAMED) / len(predictions)
        return Evaluation(
            evaluation.loss,
            metrics | evaluation.metrics,
            [item.id for item in asked],
            labels,
            predictions,
        )

    def _likeliest(self, model: nn.Module, asked: Sequence[Instruction]) -> list[int]:
        """Choose the candidate whose tokens are likeliest, on average or together."""
        rows = [
            encode_answer(self.tokenizer, item, candidate, self.max_length)
            for item in asked
            for candidate in item.candidates
        ]
        is_total = self.scoring is Scoring.TOTAL_LIKELIHOOD
        found = iter(
            [total / (1 if is_total else tokens) for total, tokens in self._answer_scores(model, rows)]
        )
        predictions: list[int] = []
        for item in asked:
            scores = [next(found) for _ in item.candidates]
            predictions.append(scores.index(max(scores)))
        return predictions

    def _named(self, model: nn.Module, asked: Sequence[Instruction]) -> list[int]:
        """Let the model answer, and read which candidate it names."""
        prompts = [encode_prompt(self.tokenizer, item, self.max_length - NEW_TOKENS) for item in asked]
        predictions = [NOTHING_NAMED] * len(asked)
        for indices in self._similar(prompts):
            with self._measuring(model):
                texts = continued(model, self.tokenizer, [prompts[i] for i in indices], self.device)
            for index, text in zip(indices, texts, strict=True):
                predictions[index] = named_choice(text, asked[index].candidates)
        return predictions

    def _answer_scores(self, model: nn.Module, rows: list[_Row]) -> list[tuple[float, int]]:
        """Return the log-likelihood of each row's labelled tokens, and their number."""
        scores = [(0.0, 0)] * len(rows)
        for indices, batch in self._batches(rows, tokens_have_labels=True):
            targets = batch.pop("labels")[:, 1:]
            logits = self._logits(model, batch)[:, :-1]
            counted = targets != IGNORED
            losses = functional.cross_entropy(logits[counted], targets[counted].cpu(), reduction="none")
            likelihoods = torch.zeros(targets.shape)
            likelihoods[counted.cpu()] = -losses
            for index, total, tokens in zip(
                indices, _list(likelihoods.sum(1)), _list(counted.sum(1)), strict=True
            ):
                scores[index] = (total, tokens)
        return scores

    def _batches(
        self, rows: Sequence[_Row], *, tokens_have_labels: bool
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yield padded batches of rows of similar length, each with the positions of its rows."""
        collate = make_collator(self.tokenizer, tokens_have_labels=tokens_have_labels)
        for indices in self._similar([row["input_ids"] for row in rows]):
            batch = collate([dict(rows[index]) for index in indices])
            yield indices, {name: value.to(self.device) for name, value in batch.items()}

    def _similar(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield the positions of rows of similar length, a batch at a time."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with self._measuring(model):
            return model(**batch).logits.float().cpu()

    @contextmanager
    def _measuring(self, model: nn.Module) -> Generator[None]:
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                yield
        finally:
            model.train(was_training)


def _list(values: Tensor) -> list[Any]:
    return cast(Any, values).tolist()
