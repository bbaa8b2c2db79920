"""Several texts in one row that do not see each other: packed rows, and candidates behind a shared prompt.

A mask of four dimensions says which token sees which, and position ids begin again with every text.
Attention by mask and position is then that of each text alone. A model that carries anything else from token
to token, such as a recurrent state, is found by trying it on a few texts.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import accumulate
from typing import Any, Self, cast, final

import torch
from torch import Tensor
from torch.nn import functional

from rankfold.errors import SpecError
from rankfold.tasks.kinds.kind import IGNORED_LABEL
from rankfold.tasks.kinds.learner import Features, Learner

logger = logging.getLogger("rankfold.tasks")

LogLikelihoods = list[tuple[float, int]]
"""The log-likelihood of each row's labelled tokens, and their number."""

_TOLERANCE = 1e-3
"""Relative difference of log-likelihoods in single precision that is rounding."""

_UNABLE = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)


# Packed rows


def pack_rows(learner: Learner, rows: Sequence[Features]) -> list[dict[str, list[int]]]:
    """Return rows that hold several of the given ones each, in their order, up to the most tokens of a row.

    Args:
        learner: Its model is tried on a few rows.
        rows: With `input_ids` and `labels`.

    Raises:
        SpecError: If the model reads packed texts in another way than each alone.
    """
    packs = _join(rows, learner.max_length)
    _check_packing(learner, rows)
    logger.info("packed %d texts into %d rows.", len(rows), len(packs))
    return packs


def _join(rows: Sequence[Features], max_length: int) -> list[dict[str, list[int]]]:
    packs: list[dict[str, list[int]]] = []
    for row in rows:
        ids, labels = list(row["input_ids"]), list(row["labels"])
        labels[0] = IGNORED_LABEL  # or the end of one text would be trained to foretell the next
        if not packs or len(packs[-1]["input_ids"]) + len(ids) > max_length:
            packs.append({name: [] for name in ("input_ids", "labels", "position_ids", "sequence_ids")})
        pack = packs[-1]
        number = pack["sequence_ids"][-1] + 1 if pack["sequence_ids"] else 0
        values = (ids, labels, range(len(ids)), [number] * len(ids))
        for name, value in zip(tuple(pack), values, strict=True):
            pack[name].extend(value)
    return packs


def collate_packed(learner: Learner, rows: Sequence[Features]) -> dict[str, Any]:
    """Return packed rows as a batch; padding sees nothing but itself."""
    width = max(len(row["input_ids"]) for row in rows)
    fillers = {
        "input_ids": learner.processor.pad_token_id,
        "labels": IGNORED_LABEL,
        "position_ids": 0,
        "sequence_ids": -1,
    }
    batch = {
        name: torch.tensor([[*row[name], *[filler] * (width - len(row[name]))] for row in rows])
        for name, filler in fillers.items()
    }
    sequences = batch.pop("sequence_ids")
    is_same = sequences[:, :, None] == sequences[:, None, :]
    is_seen = is_same & (sequences >= 0)[:, :, None] & torch.ones(width, width, dtype=torch.bool).tril()
    return {**batch, "attention_mask": block_mask(is_seen, learner)}


def block_mask(is_seen: Tensor, learner: Learner) -> Tensor:
    """Return a mask `[batch, 1, tokens, tokens]` to be added to the scores of attention.

    Args:
        is_seen: `[batch, tokens, tokens]`, whether a token sees another; each sees itself in any case.
        learner: Its model says the number type.
    """
    dtype = next((p.dtype for p in learner.model.parameters() if p.dtype.is_floating_point), torch.float32)
    is_seen = is_seen | torch.eye(is_seen.shape[-1], dtype=torch.bool)
    mask = torch.zeros(is_seen.shape, dtype=dtype)
    return mask.masked_fill(~is_seen, torch.finfo(dtype).min)[:, None]


def _check_packing(learner: Learner, rows: Sequence[Features]) -> None:
    """Check that a few rows are as likely packed as alone.

    Raises:
        SpecError: If they are not.
    """
    sample = sorted(rows, key=lambda row: len(row["input_ids"]))[:3]
    learner = replace(learner, precision="fp32")
    length = sum(len(row["input_ids"]) for row in sample)
    alone = [_label_likelihoods(learner, _join([row], length))[0] for row in sample]
    try:
        together = _label_likelihoods(learner, _join([*sample[::-1], *sample], 2 * length))
    except _UNABLE as error:
        raise _no_packing(learner) from error
    if not _is_close([*alone[::-1], *alone], together):
        raise _no_packing(learner)


def _no_packing(learner: Learner) -> SpecError:
    kind = getattr(getattr(learner.model, "config", None), "model_type", "unknown")
    return SpecError(
        f"packing is not possible with this model (type '{kind}', attention "
        f"'{_attention(learner)}'): it reads packed texts in another way than each alone; leave it out."
    )


def _attention(learner: Learner) -> str:
    config = getattr(learner.model, "config", None)
    return str(getattr(config, "_attn_implementation", "unknown"))


def _label_likelihoods(learner: Learner, packs: Sequence[Features]) -> LogLikelihoods:
    """Return the log-likelihood of the labelled tokens of each text in packed rows."""
    totals: LogLikelihoods = []
    for pack in packs:
        batch = collate_packed(learner, [pack])
        if len(set(pack["sequence_ids"])) == 1:  # as the model reads it without packing
            batch = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
        targets = batch.pop("labels")[0, 1:]
        logits = learner.logits(_on_device(batch, learner))[0, :-1]
        losses = functional.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="none")
        sequences = torch.tensor(pack["sequence_ids"][1:])
        for number in range(max(pack["sequence_ids"]) + 1):
            is_own = (sequences == number) & (targets != IGNORED_LABEL)
            totals.append((-losses[is_own].sum().item(), int(is_own.sum())))
    return totals


def _is_close(first: LogLikelihoods, second: LogLikelihoods) -> bool:
    return all(
        abs(one - other) <= _TOLERANCE * (1 + abs(one))
        for (one, _), (other, _) in zip(first, second, strict=True)
    )


def _on_device(batch: Features, learner: Learner) -> dict[str, Any]:
    return {name: value.to(learner.device) for name, value in batch.items()}


# Candidates behind a shared prompt


@final
@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """A prompt with the answers that are compared after it.

    Args:
        prompt: Token ids.
        answers: Token ids of each answer, at least one.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @classmethod
    def group(cls, rows: Iterable[Features]) -> list[Self]:
        """Return rows by their prompts; neighbours with the same tokens before their labels share one."""
        prompts: list[Self] = []
        for row in rows:
            ids, labels = row["input_ids"], row["labels"]
            length = next(index for index, label in enumerate(labels) if label != IGNORED_LABEL)
            prompt, answer = tuple(ids[:length]), tuple(ids[length:])
            if prompts and prompts[-1].prompt == prompt:
                prompts[-1] = cls(prompt, (*prompts[-1].answers, answer))
            else:
                prompts.append(cls(prompt, (answer,)))
        return prompts

    @property
    def rows(self) -> list[Features]:
        """The prompt with each answer, as rows of their own."""
        ignored = [IGNORED_LABEL] * len(self.prompt)
        return [
            {
                "input_ids": [*self.prompt, *answer],
                "attention_mask": [1] * (len(self.prompt) + len(answer)),
                "labels": [*ignored, *answer],
            }
            for answer in self.answers
        ]

    @property
    def length(self) -> int:
        """Tokens that the model reads: the last of an answer foretells nothing."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


def shared_log_likelihoods(
    learner: Learner, prompts: Sequence[SharedPrompt], alone: Callable[[list[Features]], LogLikelihoods]
) -> LogLikelihoods:
    """Return the log-likelihood of each answer and its tokens, of which each prompt is read once.

    Args:
        learner: The model. One that cannot read answers side by side reads each with its prompt.
        prompts: With their answers.
        alone: Measures rows one by one.
    """
    if not _can_share(learner, prompts, alone):
        return alone([row for prompt in prompts for row in prompt.rows])
    results: list[LogLikelihoods] = [[] for _ in prompts]
    done = 0
    with learner.reporting(len(prompts), "comparing answers") as report:
        for indices in learner.similar([prompt.length for prompt in prompts]):
            chunk = [prompts[index] for index in indices]
            for index, result in zip(indices, _measure_shared(learner, chunk), strict=True):
                results[index] = result
            done += len(indices)
            report(done)
    return [score for result in results for score in result]


def _can_share(
    learner: Learner, prompts: Sequence[SharedPrompt], alone: Callable[[list[Features]], LogLikelihoods]
) -> bool:
    """Return whether a model reads answers side by side as it reads each alone, by trying one prompt."""
    several = [prompt for prompt in prompts if len(prompt.answers) > 1]
    if not several or max(prompt.length for prompt in prompts) > _window(learner):
        return False
    learner = replace(learner, precision="fp32")
    sample = min(several, key=lambda prompt: prompt.length)
    try:
        shared = _measure_shared(learner, [sample])[0]
    except _UNABLE:
        return False
    return _is_close(alone(sample.rows), shared)


def _window(learner: Learner) -> float:
    """Return the tokens that the attention of every layer reaches, which a mask of our own would widen."""
    config = cast(Any, learner.model).config.get_text_config()
    names = ("sliding_window", "attention_chunk_size")
    sizes = [size for name in names if isinstance(size := getattr(config, name, None), int)]
    return min(sizes, default=float("inf"))


def _measure_shared(learner: Learner, prompts: Sequence[SharedPrompt]) -> list[LogLikelihoods]:
    width = max(prompt.length for prompt in prompts)
    ids = torch.full((len(prompts), width), cast(int, learner.processor.pad_token_id))
    positions, sequences = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, prompt in enumerate(prompts):
        start = width - prompt.length  # padded on the left, so that all answers are at the end
        parts = (prompt.prompt, *(answer[:-1] for answer in prompt.answers))
        firsts = accumulate((len(part) for part in parts), initial=start)
        for number, (part, first) in enumerate(zip(parts, firsts, strict=False)):
            place = slice(first, first + len(part))
            offset = len(prompt.prompt) if number else 0
            ids[row, place] = torch.tensor(part, dtype=ids.dtype)
            positions[row, place] = torch.arange(offset, offset + len(part))
            sequences[row, place] = number
    one, other = sequences[:, :, None], sequences[:, None, :]
    is_seen = ((other == 0) | (one == other)) & (one >= 0) & (other >= 0)
    is_seen &= torch.ones(width, width, dtype=torch.bool).tril()
    batch = {"input_ids": ids, "position_ids": positions, "attention_mask": block_mask(is_seen, learner)}
    last_tokens = 1 + max(prompt.length - len(prompt.prompt) for prompt in prompts)
    logits = _last_logits(learner, _on_device(batch, learner), last_tokens)
    return [_answer_likelihoods(prompt, row) for prompt, row in zip(prompts, logits, strict=True)]


def _last_logits(learner: Learner, batch: dict[str, Any], count: int) -> Tensor:
    """Return the logits of the last tokens of each row, if possible without computing those of others."""
    keeps_logits = "logits_to_keep" in signature(learner.base_model.forward).parameters
    options = {"logits_to_keep": count} if keeps_logits else {}
    return learner.logits({**batch, **options})[:, -count:]


def _answer_likelihoods(prompt: SharedPrompt, logits: Tensor) -> LogLikelihoods:
    """Return the log-likelihoods of answers from the logits of a row, `[tokens, vocabulary]`."""
    after = len(logits) - (prompt.length - len(prompt.prompt))
    first, scores = after, list[tuple[float, int]]()
    for answer in prompt.answers:
        last = first + len(answer) - 1
        own = torch.cat([logits[after - 1 : after], logits[first:last]])
        loss = functional.cross_entropy(own, torch.tensor(answer), reduction="sum")
        scores.append((-loss.item(), len(answer)))
        first = last
    return scores
