"""The engine of a server: texts become rows of the scheduler, and batches become answers of the session."""

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

import torch
from pydantic import JsonValue

from rankfold.errors import DataError, SpecError
from rankfold.models.base import LoadedModel, position_limit, resolve_model
from rankfold.serve.bank import Bank
from rankfold.serve.decoding import Decoder, Prompt
from rankfold.serve.predict import InputRow
from rankfold.serve.scheduler import Limits, Scheduler
from rankfold.serve.session import Session
from rankfold.store.manifest import Manifest
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.kinds import Learner, default_kind, find_kind
from rankfold.tasks.kinds.answers import encode_prompts
from rankfold.tasks.kinds.conversations import InstructionReader
from rankfold.tasks.kinds.learner import TEXT_SAMPLING

EMBED, CLASSIFY = "embed", "classify"

_ENDLESS = 1 << 20
"""The most tokens of a text for models without a limit of their own."""

Row = tuple[Any, str | None, int]
"""The input of a row of the scheduler, its adapter, and its length."""


@final
@dataclass(frozen=True, slots=True)
class Generation:
    """How prompts are continued.

    Args:
        max_tokens: The most new tokens; as many as fit, but no more than 256, if None.
        temperature: Of the draws; 0 takes the likeliest token.
        top_p: Draw among the likeliest tokens that together have this probability.
        seed: Of the draws; a random one if None.
        stop: Texts that end the continuation.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()


_NEW_TOKENS = 256


class TooLongError(DataError):
    """A text with more tokens than the model takes."""


@final
@dataclass(slots=True)
class EngineOptions:
    """The size of an engine.

    Args:
        slots: The most adapters that are ready at once.
        host_bytes: The most bytes of adapters in memory beside the slots.
        decoding_rows: The most texts that are continued at once.
        limits: Those of the scheduler.
    """

    slots: int = 256
    host_bytes: int = 1 << 30
    decoding_rows: int = 32
    limits: Limits = field(default_factory=Limits)


def load_base(model: str, kind: str | None = None, *, trust_remote_code: bool = False) -> LoadedModel:
    """Load a base model with the head that a kind of task needs.

    Args:
        model: `minilm`, `smollm2`, a folder, a GGUF file or a hub id.
        kind: The kind of task; the usual one of the model's architecture if None.
        trust_remote_code: Whether Python code that comes with the model's files may run.

    Raises:
        DataError: If an embedded model's package is not installed.
        SpecError: If there is no such model or kind, or the model cannot do it.
    """
    base = resolve_model(model, trust_remote_code=trust_remote_code)
    task_kind = default_kind(is_causal=base.is_causal) if kind is None else find_kind(kind)
    return task_kind.load(base)


@final
class Engine:
    """A model with the adapters of a store, and the scheduler that answers requests.

    Args:
        name: The name under which the model without an adapter is served.
        loaded: The model and its tokenizer.
        store: The file of the store; None for adapters that are added to the bank alone.
        options: Its size.

    Raises:
        SpecError: If a number is too small.
        StoreError: If the store cannot be read.
    """

    def __init__(
        self, name: str, loaded: LoadedModel, store: str | Path | None, options: EngineOptions | None = None
    ) -> None:
        options = options or EngineOptions()
        if options.slots < 2:  # noqa: PLR2004
            raise SpecError(f"slots={options.slots} is too small for a server; give 2 or more.")
        self.name, self.store = name, None if store is None else Path(store)
        self.bank = Bank(loaded.model, store, slots=options.slots, host_bytes=options.host_bytes)
        self.session = Session(self.bank, loaded.processor)
        self.generates = not loaded.model.config.is_encoder_decoder and loaded.model.can_generate()
        config = cast(Any, loaded.model).config
        self.longest = position_limit(config, loaded.model) or _ENDLESS
        # Rows that are continued hold their slots, so they must leave some for batches.
        decoder = None
        if self.generates:
            decoder = Decoder(self.session, min(options.decoding_rows, options.slots // 2))
        free = options.slots - (0 if decoder is None else decoder.most_rows)
        limits = options.limits
        if limits.batch_rows > free:
            limits = Limits(free, limits.wait, limits.queue_rows, limits.key_rows)
        # Tokenizers keep settings of a call in themselves, so that two threads disturb each other.
        self._tokenizer, self._tokenizing = copy.deepcopy(loaded.processor), threading.Lock()
        operations = {EMBED: self._embed, CLASSIFY: self._classify}
        self.scheduler = Scheduler(operations, decoder, limits)

    def adapter_of(self, model: str) -> str | None:
        """Return the adapter that a model's name stands for; None for the model without one."""
        return None if model == self.name else model

    def has(self, model: str) -> bool:
        """Whether there is a model or an adapter of this name now.

        Raises:
            StoreError: If the store cannot be read.
        """
        return model == self.name or self.bank.has(model)

    # Rows.

    def embedding_rows(self, texts: Sequence[str | Sequence[int]], adapter: str | None) -> list[Row]:
        """Return texts, or their tokens, as rows of `embed`.

        Raises:
            TooLongError: If one has more tokens than the model takes.
            DataError: If a text is empty, or a token is none of the model's.
        """
        return [(encoded, adapter, len(encoded["input_ids"])) for encoded in self._encode(texts)]

    def classification_rows(self, texts: Sequence[InputRow], adapter: str | None) -> list[Row]:
        """Return texts, pairs or rows of columns as rows of `classify`.

        Raises:
            SpecError: If the adapter has learned no task, or one whose answers are written.
        """
        task = None if adapter is None else self._manifest(adapter)
        if task is None or task.task is None:
            raise SpecError(
                f"the model '{adapter or self.name}' has learned no task of classes or numbers; name an "
                "adapter that rankfold trained."
            )
        if find_kind(task.task.kind).sampling_options >= TEXT_SAMPLING and not task.task.scoring:
            raise SpecError(f"the adapter '{adapter}' writes its answers; ask it at /v1/chat/completions.")
        return [(text, adapter, max(len(str(text)) // 4, 1)) for text in texts]

    def completion_rows(
        self, prompts: Sequence[str | Sequence[int]], adapter: str | None, generation: Generation
    ) -> list[Row]:
        """Return prompts as rows of `generate`.

        Raises:
            SpecError: If the model does not continue texts.
            TooLongError: If a prompt with its new tokens is longer than the model takes.
            DataError: If a prompt is empty, or a token is none of the model's.
        """
        self._check_generates()
        rows = self._encode(prompts)
        return [self._prompt_row(row["input_ids"], adapter, generation) for row in rows]

    def chat_rows(
        self, turns: Sequence[tuple[str, str]], adapter: str | None, generation: Generation
    ) -> list[Row]:
        """Return a conversation, up to where the assistant answers, as a row of `generate`.

        Raises:
            SpecError: If the model does not continue texts, or has no chat template for several turns.
            TooLongError: If the conversation with its answer is longer than the model takes.
            DataError: If the chat template refuses the conversation.
        """
        self._check_generates()
        manifest = None if adapter is None else self._manifest(adapter)
        settings: Mapping[str, JsonValue] = {}
        if manifest is not None and manifest.task is not None:
            settings = manifest.task.settings
        learner = Learner(self.session.model, self._tokenizer, _ENDLESS, settings=settings)
        if learner.chat_template.source is None and len(turns) > 1:
            raise SpecError(
                f"'{adapter or self.name}' has no chat template, so it cannot read {len(turns)} messages; "
                "send one, or the whole text to /v1/completions."
            )
        row = default_kind(is_causal=True).conversation_row(learner, turns)
        columns = Columns(**({} if manifest is None else manifest.columns))
        prompt = InstructionReader(columns).read_prompt(row, 0)
        with self._tokenizing:
            (ids,) = encode_prompts(learner, [prompt], _ENDLESS)
        return [self._prompt_row(ids, adapter, generation)]

    def _manifest(self, adapter: str) -> Manifest | None:
        return self.bank.manifest(adapter)

    def _check_generates(self) -> None:
        if not self.generates:
            raise SpecError(
                f"the model '{self.name}' does not continue texts; use /v1/embeddings or /v1/classify, or "
                "serve a causal language model."
            )

    def _prompt_row(self, ids: Sequence[int], adapter: str | None, generation: Generation) -> Row:
        room = self.longest - len(ids)
        new = min(_NEW_TOKENS, room) if generation.max_tokens is None else generation.max_tokens
        if new > room or new < 1:
            raise TooLongError(
                f"the prompt has {len(ids)} tokens and asks for {max(new, 1)} more, but the model takes "
                f"{self.longest}; shorten the prompt, or ask for fewer."
            )
        prompt = Prompt(
            ids, new, generation.temperature, generation.top_p, generation.seed, tuple(generation.stop)
        )
        return prompt, adapter, len(ids)

    def _encode(self, texts: Sequence[str | Sequence[int]]) -> list[dict[str, list[int]]]:
        rows: list[dict[str, list[int]]] = []
        for index, text in enumerate(texts):
            row = self._encode_text(text) if isinstance(text, str) else self._check_tokens(text)
            count = len(row["input_ids"])
            if not count:
                raise DataError(f"text {index} is empty; leave it out.")
            if count > self.longest:
                raise TooLongError(
                    f"text {index} has {count} tokens, but the model takes {self.longest}; shorten it."
                )
            rows.append(row)
        return rows

    def _encode_text(self, text: str) -> dict[str, list[int]]:
        with self._tokenizing:
            encoded = self._tokenizer(text, truncation=False, verbose=False)
        return {name: list(values) for name, values in encoded.items() if name != "attention_mask"}

    def _check_tokens(self, ids: Sequence[int]) -> dict[str, list[int]]:
        size: int = cast(Any, self.session.model).config.get_text_config().vocab_size
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise DataError(f"{wrong[0]} is no token of the model, which has {size:,}; send texts.")
        row = {"input_ids": list(ids)}
        if "token_type_ids" in self.session.processor.model_input_names:
            row["token_type_ids"] = [0] * len(ids)
        return row

    # Operations.

    def _embed(
        self, rows: Sequence[dict[str, list[int]]], adapters: Sequence[str | None]
    ) -> list[list[float]]:
        width = max(len(row["input_ids"]) for row in rows)
        pads = {"input_ids": self.session.processor.pad_token_id}
        batch = {
            name: torch.tensor(
                [row[name] + [pads.get(name, 0)] * (width - len(row["input_ids"])) for row in rows]
            )
            for name in rows[0]
        }
        batch["attention_mask"] = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        )
        return cast(Any, self.session.embed(batch, adapters).float()).tolist()

    def _classify(
        self, texts: Sequence[InputRow], adapters: Sequence[str | None]
    ) -> list[dict[str, JsonValue]]:
        names = [name for name in adapters if name is not None]
        return self.session.predict(texts, names, batch_size=len(texts))

    def close(self, *, timeout: float | None = None) -> None:
        """Answer what waits, and close the store.

        Args:
            timeout: Seconds after which requests that are left fail.
        """
        self.scheduler.close(timeout=timeout)
        self.bank.close()
