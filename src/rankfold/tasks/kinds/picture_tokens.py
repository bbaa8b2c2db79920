"""Questions about pictures as tokens and pixels: encoded, padded, and answered by a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from rankfold.errors import DataError
from rankfold.progress import quiet_libraries
from rankfold.tasks.kinds.kind import IGNORED_LABEL, Collate
from rankfold.tasks.kinds.learner import Features, Learner, check_finite
from rankfold.tasks.kinds.picture_questions import PictureQuestion

_GRAY = 128


def encode_question(
    learner: Learner, item: PictureQuestion, answer: str | None, *, is_blind: bool
) -> dict[str, Any]:
    """Return the tokens of a prompt, perhaps with its answer, and the pixels of its pictures.

    Raises:
        DataError: If the row has more tokens than the learner takes: none of a picture's can be cut.
    """
    processor = learner.processor
    images = [picture.read() for picture in item.pictures]
    if is_blind:
        images = [image.convert("L").point(lambda _: _GRAY).convert("RGB") for image in images]
    with quiet_libraries():
        inputs = processor(text=[_prompt(processor, item)], images=images or None, return_tensors="pt")
    size = inputs["input_ids"].shape
    # Those of each token, such as the mask, are continued by the answer's.
    features: dict[str, Any] = {
        name: value[0].tolist() if value.shape == size else value
        for name, value in inputs.items()
        if name != "labels"  # of PaliGemma's prompts, which learn nothing
    }
    if answer is None:
        return features
    tokenizer = processor.tokenizer
    ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else ids
    for name, value in features.items():
        if isinstance(value, list):
            tokens = cast("list[int]", value)
            tokens += ids if name == "input_ids" else [_type_of_answer(name, tokens)] * len(ids)
    count = len(features["input_ids"])
    if count > learner.max_length:
        raise DataError(
            f"the row '{item.id}' has {count} tokens with those of its pictures, and at most "
            f"{learner.max_length} are read; raise --max-length, or remove the row."
        )
    return {**features, "labels": [IGNORED_LABEL] * (count - len(ids)) + ids}


def _type_of_answer(name: str, prompt: Sequence[int]) -> int:
    """Return the number that stands beside each token of an answer: of a mask, or of types of tokens.

    Where only the tokens of pictures have a type (Gemma 3), the answer has none; where the whole prompt has
    the type 0, it is read as one (PaliGemma), and the answer has another type: it must not see what follows.
    """
    return int(name == "attention_mask" or (name == "token_type_ids" and not any(prompt)))


def _prompt(processor: Any, item: PictureQuestion) -> str:
    """Return the turns as the processor's chat template writes them, or one after another without one."""
    if getattr(processor, "chat_template", None):
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "image"} if part is None else {"type": "text", "text": part}
                    for part in turn.parts
                ],
            }
            for turn in item.turns
        ]
        return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # BLIP-2 puts its tokens of the picture before the text itself.
    is_marked = getattr(processor, "num_query_tokens", None) is None
    mark = str(getattr(processor, "image_token", None) or "") if is_marked else ""
    if not is_marked and len(item.pictures) != 1:
        raise DataError(
            f"the row '{item.id}' has {len(item.pictures)} pictures, and this model reads one; keep one."
        )
    texts = ["".join(mark if part is None else f"{part}\n" for part in turn.parts) for turn in item.turns]
    # PaliGemma's ends prompts with a line break itself.
    return "".join(texts).removesuffix("\n" if type(processor).__name__.startswith("PaliGemma") else "")


def question_collator(learner: Learner, *, on_left: bool) -> Collate:
    """Return the function that pads tokens, on the left before they are continued, and joins pictures.

    Models that can are asked for the logits of the answers alone: those of a vocabulary are most of what a
    batch of short questions takes.
    """
    padding: int = learner.processor.tokenizer.pad_token_id
    keeps_logits = "logits_to_keep" in signature(learner.base_model.forward).parameters

    def collate(rows: Sequence[Features]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name, first in rows[0].items():
            values = [row[name] for row in rows]
            if isinstance(first, list):
                fill = {"input_ids": padding, "labels": IGNORED_LABEL}.get(name, 0)
                batch[name] = _pad(values, fill, on_left=on_left)
            else:
                batch[name] = _join(values)
        if keeps_logits and "labels" in batch:
            batch |= _answers_only(batch["labels"])
        return batch

    return collate


def _answers_only(labels: Tensor) -> dict[str, Any]:
    """Return the labels from the token before the first answer on, and their places."""
    first = max(int((labels != IGNORED_LABEL).any(0).long().argmax()) - 1, 0)
    return {"labels": labels[:, first:], "logits_to_keep": torch.arange(first, labels.shape[1])}


def _pad(rows: Sequence[Sequence[int]], fill: int, *, on_left: bool) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor(
        [
            [fill] * (width - len(row)) + [*row] if on_left else [*row] + [fill] * (width - len(row))
            for row in rows
        ]
    )


def _join(values: Sequence[Tensor]) -> Tensor:
    """Return the pictures of all rows one after another; fewer tiles of one are filled with zeros."""
    sizes = [max(value.shape[axis] for value in values) for axis in range(1, values[0].dim())]
    padded = [
        functional.pad(
            value,
            [
                amount
                for axis in reversed(range(1, value.dim()))
                for amount in (0, sizes[axis - 1] - value.shape[axis])
            ],
        )
        for value in values
    ]
    return torch.cat(padded)


def generate_replies(
    learner: Learner, batch: Mapping[str, Any], items: Sequence[PictureQuestion]
) -> list[str]:
    """Return the answer to each question of a batch: the likeliest token after token, or as sampled."""
    tokenizer = learner.processor.tokenizer
    width = batch["input_ids"].shape[1]
    longest = max(
        (len(tokenizer(text)["input_ids"]) for item in items for text in item.candidates), default=0
    )
    sampling = replace(learner.sampling, max_new_tokens=longest + 2) if longest else learner.sampling

    def check(_tokens: Tensor, scores: Tensor) -> Tensor:
        check_finite(scores.amax(-1, keepdim=True), [item.id for item in items])
        return scores

    with learner.evaluating(), quiet_libraries(), learner.drawing_from_seed():
        tokens = cast(Any, learner.model).generate(
            **batch,
            generation_config=sampling.config(tokenizer),
            logits_processor=[check],
            prefix_allowed_tokens_fn=_choices(tokenizer, items, width) if longest else None,
        )
    texts = tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True)
    return [_candidate_of(text.strip(), item.candidates) for text, item in zip(texts, items, strict=True)]


def _candidate_of(text: str, candidates: Sequence[str]) -> str:
    """Return the candidate that a decoded text is, whatever its spaces."""
    by_letters = {"".join(candidate.split()): candidate for candidate in candidates}
    return by_letters.get("".join(text.split()), text)


def _choices(
    tokenizer: Any, items: Sequence[PictureQuestion], width: int
) -> Callable[[int, Tensor], list[int]]:
    """Return the function that allows only the tokens of the candidates, of each of the rows."""
    end: int = tokenizer.eos_token_id
    tables: dict[tuple[str, ...], list[list[int]]] = {}
    for item in items:
        if item.candidates not in tables:
            ids = tokenizer([*item.candidates], add_special_tokens=False)["input_ids"]
            tables[item.candidates] = [[*row, end] for row in ids]

    def next_tokens(row: int, tokens: Tensor) -> list[int]:
        written = cast("list[int]", cast(Any, tokens)[width:].tolist())
        paths = tables[items[row].candidates]
        following = {path[len(written)] for path in paths if path[: len(written)] == written != path}
        return sorted(following) or [end]

    return next_tokens
