"""What a model that writes text answers: how likely an answer is, and which of several it would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankfold.tasks.kinds.encode import (
    IGNORED,
    Encoded,
    encode_answer,
    encode_instructions,
    encode_prompts,
)
from rankfold.tasks.kinds.examples import Instruction
from rankfold.tasks.kinds.forward import NEW_TOKENS, Forward, continued
from rankfold.tasks.kinds.scoring import NOTHING_NAMED, Scoring, named_choice


@final
@dataclass(frozen=True, slots=True)
class Answers:
    """Knows how to ask a model.

    Args:
        forward: Runs the model.
        max_length: The most tokens of prompt and answer together.
        scoring: How the answer to a question with choices is found.
    """

    forward: Forward
    max_length: int
    scoring: Scoring

    def loss(self, model: nn.Module, instructions: Sequence[Instruction]) -> float:
        """Return the mean cross-entropy of a token of the right answers."""
        rows = encode_instructions(self.forward.tokenizer, instructions, self.max_length)
        scores = self._scores(model, rows)
        return -sum(total for total, _ in scores) / sum(tokens for _, tokens in scores)

    def chosen(self, model: nn.Module, asked: Sequence[Instruction]) -> list[int]:
        """Return the candidate that is the model's answer to each question, by its index.

        Args:
            model: The model.
            asked: Questions with candidates.
        """
        generates = self.scoring is Scoring.GENERATED
        return self._named(model, asked) if generates else self._likeliest(model, asked)

    def _likeliest(self, model: nn.Module, asked: Sequence[Instruction]) -> list[int]:
        """Choose the candidate whose tokens are likeliest, on average or together."""
        rows = [
            encode_answer(self.forward.tokenizer, item, candidate, self.max_length)
            for item in asked
            for candidate in item.candidates
        ]
        is_total = self.scoring is Scoring.TOTAL_LIKELIHOOD
        found = iter([total if is_total else total / tokens for total, tokens in self._scores(model, rows)])
        predictions: list[int] = []
        for item in asked:
            scores = [next(found) for _ in item.candidates]
            predictions.append(scores.index(max(scores)))
        return predictions

    def _named(self, model: nn.Module, asked: Sequence[Instruction]) -> list[int]:
        """Let the model answer, and read which candidate it names."""
        tokenizer, device = self.forward.tokenizer, self.forward.device
        prompts = encode_prompts(tokenizer, asked, self.max_length - NEW_TOKENS)
        predictions = [NOTHING_NAMED] * len(asked)
        for indices in self.forward.similar(prompts):
            with self.forward.measuring(model):
                texts = continued(model, tokenizer, [prompts[index] for index in indices], device)
            for index, text in zip(indices, texts, strict=True):
                predictions[index] = named_choice(text, asked[index].candidates)
        return predictions

    def _scores(self, model: nn.Module, rows: Sequence[Encoded]) -> list[tuple[float, int]]:
        """Return the log-likelihood of each row's labelled tokens, and their number."""
        scores = [(0.0, 0)] * len(rows)
        for indices, batch in self.forward.batches(rows, tokens_have_labels=True):
            targets = batch.pop("labels")[:, 1:]
            logits = self.forward.logits(model, batch)[:, :-1]
            counted = targets != IGNORED
            losses = functional.cross_entropy(logits[counted], targets[counted].cpu(), reduction="none")
            likelihoods = torch.zeros(targets.shape)
            likelihoods[counted.cpu()] = -losses
            for index, total, tokens in zip(
                indices, _list(likelihoods.sum(1)), _list(counted.sum(1)), strict=True
            ):
                scores[index] = (total, tokens)
        return scores


def _list(values: Tensor) -> list[Any]:
    return cast(Any, values).tolist()
