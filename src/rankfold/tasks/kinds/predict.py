"""Measuring a model on held-out examples: loss, metrics, and each prediction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.errors import SpecError, TrainingError
from rankfold.models.kind import Kind
from rankfold.tasks.kinds.answers import Answers
from rankfold.tasks.kinds.encode import encode_examples
from rankfold.tasks.kinds.examples import Example, Examples, Instruction
from rankfold.tasks.kinds.forward import NEW_TOKENS, Forward
from rankfold.tasks.kinds.scoring import NOTHING_NAMED, Scoring
from rankfold.tasks.metrics import ANSWER_LOSS, UNPARSED, measure


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
        else:
            evaluation = self._answered(model, examples.instructions[split], is_final=is_final)
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
        for indices, batch in self._forward.batches(rows, tokens_have_labels=False):
            batch.pop("labels")
            chunks.append(self._forward.logits(model, batch))
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

    def _answered(
        self, model: nn.Module, instructions: Sequence[Instruction], *, is_final: bool
    ) -> Evaluation:
        answers = Answers(self._forward, self.max_length, self.scoring or Scoring.LIKELIHOOD)
        loss = answers.loss(model, instructions)
        metrics = {ANSWER_LOSS: loss}
        asked = [item for item in instructions if item.candidates]
        if not asked or not is_final:
            return Evaluation(loss, metrics)
        predictions = answers.chosen(model, asked)
        labels = [item.candidates.index(item.answer) for item in asked]
        if self.scoring is Scoring.GENERATED:
            metrics[UNPARSED] = predictions.count(NOTHING_NAMED) / len(predictions)
        return Evaluation(
            loss,
            measure(("accuracy",), labels, predictions) | metrics,
            [item.id for item in asked],
            labels,
            predictions,
        )

    @property
    def _forward(self) -> Forward:
        return Forward(self.tokenizer, self.device, self.precision, self.batch_size)


def _list(values: Tensor) -> list[Any]:
    return cast(Any, values).tolist()
