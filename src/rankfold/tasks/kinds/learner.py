"""`Learner`: a model with its processor, ready to be run over examples in batches of similar length."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, final, overload

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import GenerationConfig, TextStreamer

from rankfold.errors import AdapterFileError
from rankfold.models.hardware import autocast
from rankfold.models.tokenizer import unknown_share
from rankfold.progress import Progress, Silent, quiet_libraries
from rankfold.tasks.data.table import Finding
from rankfold.tasks.kinds.chat_template import CHAT_TEMPLATE, ChatTemplate

Features = Mapping[str, Any]
"""One example as the model's keyword arguments: token ids and so on, without padding."""


_Row = TypeVar("_Row")


@final
class LazyRows(Sequence[Features]):
    """Rows that are encoded each time they are read, because those of all pictures would not fit in memory.

    Args:
        encode: Returns the features of the row of an index.
        lengths: The tokens of each row, 0 where it has none.
    """

    def __init__(self, encode: Callable[[int], Features], lengths: Sequence[int]) -> None:
        self._encode = encode
        self.lengths = tuple(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | Sequence[Features]:
        """Return one row, encoded now, or some of them, encoded later."""
        if isinstance(index, slice):
            return self.part(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._encode(index % len(self))

    def part(self, indices: Sequence[int]) -> "LazyRows":
        """Return some of the rows, in this order."""
        return LazyRows(
            lambda place: self._encode(indices[place]), [self.lengths[index] for index in indices]
        )


def some_rows(rows: Sequence[_Row], indices: Sequence[int]) -> Sequence[_Row]:
    """Return some rows, in this order; those that are encoded when they are read still are."""
    if isinstance(rows, LazyRows):
        return cast("Sequence[_Row]", rows.part(indices))
    return [rows[index] for index in indices]


def row_lengths(rows: Sequence[Features]) -> Sequence[int]:
    """Return the tokens of each row, 0 where it has none."""
    return rows.lengths if isinstance(rows, LazyRows) else [len(row.get("input_ids", ())) for row in rows]


NEW_TOKENS = 32
"""The most tokens of a generated answer: several times those of "the correct answer is answer3"."""


_MOST_UNKNOWN = 0.2
"""The share of unknown tokens above which a remark is made."""

_REPORTED_EXAMPLES = 64
"""More examples than this are worth a report of their progress."""

_CPU = torch.device("cpu")


TEXT_SAMPLING = frozenset({"max_new_tokens", "temperature", "top_p", "seed"})
"""The fields of a sampling request that texts depend on."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a text is generated, greedily unless a temperature is set, or a picture is drawn.

    Args:
        max_new_tokens: The most tokens of an answer.
        temperature: Divides the logits before a token is drawn; 0 takes the likeliest token.
        top_p: Draw among the likeliest tokens that together have this probability.
        seed: Of the draws, so that the same batch gives the same texts again.
        denoising_steps: Steps in which a picture is drawn; the pipeline's own number if None.
        guidance: Weight of a caption in its picture; the pipeline's own if None.
    """

    max_new_tokens: int = NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    denoising_steps: int | None = None
    guidance: float | None = None

    def config(self, tokenizer: Any, end_of_turn: int | None = None) -> GenerationConfig:
        """Return the settings for `generate`, which ends at the end of text, or at one of a turn."""
        ends: list[int] = [token for token in (tokenizer.eos_token_id, end_of_turn) if token is not None]
        # Settings that are left out would be taken from the model's own, made for conversation.
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            temperature=self.temperature or 1.0,
            top_k=0 if self.temperature > 0 else 50,
            top_p=self.top_p,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends if len(ends) > 1 else tokenizer.eos_token_id,
        )


def check_finite(values: Tensor, names: Sequence[int | str]) -> Tensor:
    """Return a model's outputs for some rows, if all of them are finite.

    Args:
        values: With the rows as the first axis.
        names: The id of each row.

    Raises:
        AdapterFileError: If a number is not finite, with the first row that has one.
    """
    is_fine: list[bool] = cast(Any, values.isfinite().unsqueeze(-1).flatten(1).all(1)).tolist()
    if not all(is_fine):
        name = names[is_fine.index(False)]
        row = name + 1 if isinstance(name, int) else f"'{name}'"
        raise AdapterFileError(
            f"the model's output for row {row} is not a finite number, so the adapter's weights or settings, "
            "such as its alpha, are of no use; restore the adapter, or train it again."
        )
    return values


@dataclass(frozen=True, slots=True)
class Learner:
    """A model, and how to run it.

    Args:
        model: With its adapter, on `device`.
        processor: The model's tokenizer.
        max_length: The most tokens of a row; generated ones count.
        batch_size: Rows at a time.
        device: Where the model is when it runs.
        precision: `fp32` or `bf16`.
        scoring: How answers with choices are found, for kinds that have them.
        settings: The `Examples.settings` that the model is trained with.
        label_names: Class names in the order of their ids, for kinds that have classes.
        sampling: How texts are generated.
        generation_length: The most tokens of a prompt with its generated text; `max_length` if None.
        on_text: Gets a generated text piece by piece, where one is generated alone.
        progress: Gets the progress of long encodings and evaluations.
    """

    model: nn.Module
    processor: Any
    max_length: int
    batch_size: int = 16
    device: torch.device = _CPU
    precision: str = "fp32"
    scoring: str | None = None
    settings: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    label_names: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    generation_length: int | None = None
    on_text: Callable[[str], None] | None = None
    progress: Progress = field(default_factory=Silent)

    @property
    def chat_template(self) -> ChatTemplate:
        """The template of the settings, or the tokenizer's own."""
        template = self.settings.get(CHAT_TEMPLATE)
        return ChatTemplate(self.processor, template if isinstance(template, str) else None)

    @contextmanager
    def reporting(self, total: int, description: str) -> Generator[Callable[[int], None]]:
        """Report the progress of work on many examples while the block runs, if there is much of it.

        Args:
            total: How many examples.
            description: Shown beside the bar.

        Yields:
            A function that takes how many examples are done.
        """
        if total <= _REPORTED_EXAMPLES:
            yield lambda done: None
            return
        self.progress.start(total, description)
        try:
            yield self.progress.advance
        finally:
            self.progress.finish()

    def token_findings(self, rows: Sequence[Features]) -> list[Finding]:
        """Return a remark if the tokenizer does not know many of the words of encoded rows."""
        if getattr(self.processor, "unk_token_id", None) is None:
            return []
        share = unknown_share(self.processor, (row.get("input_ids", ()) for row in rows))
        if share <= _MOST_UNKNOWN:
            return []
        message = (
            f"{share:.0%} of the tokens are unknown to the model's tokenizer, which cannot tell them "
            "apart; use a model for this language or script."
        )
        return [Finding("unknown_tokens", message)]

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Put the model in evaluation mode while the block runs: no dropout, no gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                yield
        finally:
            self.model.train(was_training)

    @property
    def base_model(self) -> Any:
        """The model of transformers, without PEFT's around it."""
        model = cast(Any, self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the logits of a batch on the CPU, in single precision at least."""
        with self.evaluating():
            logits: Tensor = self.model(**batch).logits
            return (logits if logits.dtype == torch.float64 else logits.float()).cpu()

    def batches(
        self, rows: Sequence[Features], collate: Callable[[Sequence[Features]], dict[str, Any]]
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yield padded batches on the device, each with the indices of its rows."""
        for indices in self.similar(row_lengths(rows)):
            batch = collate([dict(rows[index]) for index in indices])
            yield indices, {name: value.to(self.device) for name, value in batch.items()}

    def similar(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices of rows of similar length, a batch at a time."""
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    @property
    def prompt_room(self) -> int:
        """The most tokens of a prompt that is continued; below 1 if the new ones leave no room."""
        return (self.generation_length or self.max_length) - self.sampling.max_new_tokens

    def generate(self, prompts: Sequence[Sequence[int]], names: Sequence[int | str]) -> list[str]:
        """Return the continuation of each prompt, up to its end of text, as `sampling` says.

        Shorter prompts are padded on the left and the padding is masked, so that no greedy continuation
        depends on the other prompts.

        Args:
            prompts: Token ids.
            names: Of each prompt the id of its row, for the error.

        Raises:
            AdapterFileError: If the model gives no finite number for a token.
        """

        def check(_tokens: Tensor, scores: Tensor) -> Tensor:
            # A token that must not come next has -inf, but never all of them.
            check_finite(scores.amax(-1, keepdim=True), names)
            return scores

        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), cast(int, self.processor.pad_token_id))
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with self.evaluating(), quiet_libraries(), self.drawing_from_seed():
            tokens = cast(Any, self.model).generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=self.sampling.config(self.processor, self.chat_template.end_of_turn()),
                logits_processor=[check],
                streamer=self._streamer() if len(prompts) == 1 else None,
            )
        return cast("list[str]", self.processor.batch_decode(tokens[:, width:], skip_special_tokens=True))

    def _streamer(self) -> TextStreamer | None:
        """Return transformers' object that decodes tokens as they come, and passes whole words on."""
        if (on_text := self.on_text) is None:
            return None

        def pass_on(text: str, *, stream_end: bool = False) -> None:
            _ = stream_end
            on_text(text)

        streamer: Any = TextStreamer(self.processor, skip_prompt=True, skip_special_tokens=True)
        streamer.on_finalized_text = pass_on
        return streamer

    @contextmanager
    def drawing_from_seed(self) -> Generator[None]:
        """Draw from the sampling's seed while the block runs, and leave torch's generators as they were."""
        if not self.sampling.temperature:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with cast(Any, torch.random).fork_rng(devices):
            cast(Any, torch).manual_seed(self.sampling.seed)
            yield
