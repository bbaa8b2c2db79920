"""The session: a model with a bank in it, whose every batch has an adapter of its own for each row."""

import copy
import threading
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, cast, final

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from rankfold.errors import SpecError
from rankfold.models.base import position_limit
from rankfold.progress import quiet_libraries
from rankfold.serve.bank import Bank, Batch
from rankfold.serve.layers import with_changes, with_heads
from rankfold.serve.library import ReadyAdapter
from rankfold.serve.predict import InputRow, MixedLearner, answer_rows
from rankfold.store.manifest import Manifest
from rankfold.tasks.kinds.learner import Sampling

Inputs = Mapping[str, Tensor] | Sequence[str] | Sequence[tuple[str, str]]
"""A batch as the model takes it, by name; or texts, or pairs of texts, for the processor."""

_BATCH_SIZE = 32
_NEW_TOKENS = 256
_REPEATS = ("num_beams", "num_return_sequences")


class _ReplacedError(Exception):
    """An adapter was replaced between two readings of its name."""


@final
class Session:
    """A base model that answers each row of a batch with the adapter that the row names.

    A batch is one pass of the model, however many adapters it names. The base model is not changed: the
    session has a copy of its modules that shares all weights. Several threads may use one session.

    Args:
        bank: The adapters, and the base model.
        processor: The model's tokenizer, for texts; not needed for tensors.

    Example:
        >>> session = rankfold.Session(rankfold.Bank(model, "adapters.db"), tokenizer)  # doctest: +SKIP
        >>> session.classify(
        ...     ["Where is my parcel?", "It broke."], adapters=["alice", "bob"]
        ... )  # doctest: +SKIP
        [{'delivery': 0.98, 'returns': 0.02}, {'bad': 0.91, 'good': 0.09}]
    """

    def __init__(self, bank: Bank, processor: Any = None) -> None:
        self.bank, self.processor = bank, processor
        weights = (*bank.model.parameters(), *bank.model.buffers())
        self.model = copy.deepcopy(bank.model, {id(tensor): tensor for tensor in weights}).eval()
        self._batch: ContextVar[Batch | None] = ContextVar("batch", default=None)
        self._attached: set[str] = set()
        self._attaching = threading.Lock()

    # Tensors and texts.

    def run(self, inputs: Inputs, adapters: Sequence[str | None], **options: Any) -> Any:
        """Return the model's own output for a batch.

        Where the rows' adapters have heads of different sizes, the logits of the smaller ones are filled up
        with minus infinity.

        Args:
            inputs: The batch.
            adapters: The name of each row's adapter; None for the base model.
            **options: Passed to the model.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If an adapter is unknown or cannot be served, or there are not as many names as rows.
            StoreError: If the store cannot be read.
        """
        batch = self._encode(inputs)
        with self._rows(batch, adapters):
            return cast(Any, self.model)(**batch, **options)

    def embed(self, inputs: Inputs, adapters: Sequence[str | None]) -> Tensor:
        """Return an embedding of length 1 for each row: the mean of its tokens' last hidden states.

        Args:
            inputs: The batch.
            adapters: The name of each row's adapter; None for the base model.

        Returns:
            [rows, hidden], on the CPU.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If an adapter is unknown or cannot be served, or there are not as many names as rows.
            StoreError: If the store cannot be read.
        """
        batch = self._encode(inputs)
        backbone = cast(Any, self.model).base_model
        with self._rows(batch, adapters):
            hidden: Tensor = backbone(**batch).last_hidden_state
            mask = batch.get("attention_mask", torch.ones_like(hidden[..., 0])).unsqueeze(-1).to(hidden.dtype)
            return functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1).cpu()

    def classify(self, inputs: Inputs, adapters: Sequence[str | None]) -> list[dict[str, float]]:
        """Return the probability of every class for each row, by the class names of its adapter.

        Args:
            inputs: The batch.
            adapters: The name of each row's adapter; None for the base model.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If an adapter is unknown or cannot be served, or there are not as many names as rows.
            StoreError: If the store cannot be read.
        """
        tensors = self._encode(inputs)
        with self._rows(tensors, adapters) as batch:
            logits: Tensor = cast(Any, self.model)(**tensors).logits
        names = {adapter: self._class_names(adapter) for adapter in set(batch.adapters)}
        rows: list[list[float]] = cast(Any, logits.double().softmax(-1)).tolist()
        return [
            dict(zip(names[adapter] or [f"LABEL_{index}" for index in range(len(row))], row, strict=False))
            for adapter, row in zip(batch.adapters, rows, strict=True)
        ]

    def generate(self, inputs: Inputs, adapters: Sequence[str | None], **options: Any) -> Any:
        """Return the continuation of each row, all rows in one batch.

        Args:
            inputs: The batch; texts are padded on the left.
            adapters: The name of each row's adapter; None for the base model.
            **options: Those of `generate` in transformers, such as `max_new_tokens`.

        Returns:
            Texts for texts; for tensors those that transformers returns.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If an adapter is unknown or cannot be served, or there are not as many names as rows.
            StoreError: If the store cannot be read.
        """
        is_text = not isinstance(inputs, Mapping)
        batch = self._encode(inputs, padding_side="left")
        config = options.get("generation_config")
        settings = {name: options.get(name, getattr(config, name, None)) or 1 for name in _REPEATS}
        with self._rows(batch, adapters, times=max(settings.values()), keep=True), quiet_libraries():
            tokens: Any = cast(Any, self.model).generate(**batch, **options)
        if not is_text:
            return tokens
        prompt = 0 if cast(Any, self.model).config.is_encoder_decoder else batch["input_ids"].shape[1]
        return self.processor.batch_decode(tokens[:, prompt:], skip_special_tokens=True)

    def predict(
        self,
        texts: Sequence[InputRow],
        adapters: Sequence[str],
        *,
        batch_size: int = _BATCH_SIZE,
        max_new_tokens: int = _NEW_TOKENS,
    ) -> list[dict[str, JsonValue]]:
        """Return the answer to each text by the task that its adapter has learned, like `rankfold predict`.

        Args:
            texts: Texts, pairs of texts, or rows as in the training data.
            adapters: The name of each text's adapter, which must have been trained by rankfold.
            batch_size: The most rows of a batch.
            max_new_tokens: The most tokens of a generated answer.

        Returns:
            An object of JSON for each text: `label` and `probabilities` of a classification, `value` of a
            regression, `text` of an instruction; other kinds have their own keys.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            DataError: If a text is missing.
            SpecError: If an adapter is unknown, cannot be served or has no task, or there are not as many
                names as texts.
            StoreError: If the store cannot be read.
        """
        _check_count(len(texts), adapters)
        learner = MixedLearner(
            self.model,
            self.processor,
            1,
            batch_size,
            next(self.model.parameters()).device,
            sampling=Sampling(max_new_tokens),
            adapters=tuple(adapters),
        )
        while True:
            digests: dict[str, Hashable] = {}
            manifests: dict[str, Manifest | None] = {}
            for name in dict.fromkeys(adapters):
                adapter = self.bank.find([name])[name]
                digests[name], manifests[name] = adapter.digest, adapter.manifest
            try:
                return answer_rows(
                    replace(learner, serving=partial(self._serve_same, digests)), texts, manifests
                )
            except _ReplacedError:
                continue  # its classes and its weights must be of one adapter

    @contextmanager
    def _serve_same(
        self, digests: Mapping[str, Hashable], adapters: Sequence[str], *, keep: bool
    ) -> Generator[None]:
        """Serve rows as `serving` does, if their adapters still have these digests."""
        with self.serving(adapters, keep=keep) as batch:
            for name, adapter in zip(adapters, batch.adapters, strict=True):
                if adapter is None or adapter.digest != digests[name]:
                    raise _ReplacedError
            yield

    def _encode(self, inputs: Inputs, padding_side: str = "right") -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        if isinstance(inputs, Mapping):
            return {name: tensor.to(device) for name, tensor in inputs.items()}
        if self.processor is None:
            raise SpecError(
                "the inputs are texts, and the session has no processor; make it with a tokenizer."
            )
        pairs = [(text, None) if isinstance(text, str) else text for text in inputs]
        seconds = [second for _, second in pairs]
        tokens = self.processor(
            [first for first, _ in pairs],
            seconds if any(second is not None for second in seconds) else None,
            padding=True,
            padding_side=padding_side,
            truncation=True,
            max_length=position_limit(cast(Any, self.model).config, self.model),
            return_tensors="pt",
        )
        return {name: tensor.to(device) for name, tensor in tokens.items()}

    def _class_names(self, adapter: ReadyAdapter | None) -> Sequence[str]:
        manifest = None if adapter is None else adapter.manifest
        if manifest is not None:
            return manifest.label_names or ()
        labels: Mapping[int, str] = getattr(getattr(self.model, "config", None), "id2label", {})
        return [labels[index] for index in sorted(labels)]

    # Layers.

    @contextmanager
    def _rows(
        self,
        inputs: Mapping[str, Tensor],
        adapters: Sequence[str | None],
        *,
        times: int = 1,
        keep: bool = False,
    ) -> Generator[Batch]:
        """Serve the passes in the block with an adapter for each row."""
        _check_count(len(next(iter(inputs.values()))), adapters)
        with self.serving(adapters, times=times, keep=keep) as batch:
            yield batch

    @contextmanager
    def serving(
        self, adapters: Sequence[str | None], *, times: int = 1, keep: bool = False
    ) -> Generator[Batch]:
        """Let `model` serve batches of these rows while the block runs, in this thread; without gradients.

        Args:
            adapters: The name of each row's adapter; None for the base model.
            times: How often each row is repeated, as by beam search.
            keep: Whether several passes will be made with the same rows.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If an adapter is unknown or cannot be served.
            StoreError: If the store cannot be read.
        """
        with self.bank.batch(adapters, times=times, keep=keep) as batch, self.using(batch):
            yield batch

    @contextmanager
    def using(self, batch: Batch) -> Generator[None]:
        """Let `model` serve the rows of a batch of the bank while the block runs, in this thread."""
        self._attach(batch.layers)
        token = self._batch.set(batch)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._batch.reset(token)

    def _attach(self, names: set[str]) -> None:
        """Let layers of the session's model ask for the adapters of their rows."""
        if names <= self._attached:
            return
        with self._attaching:
            for name in names - self._attached:
                layer = self.model.get_submodule(name)
                layer.forward = partial(self._forward, name, layer, layer.forward)
                self._attached.add(name)

    def _forward(
        self,
        name: str,
        layer: nn.Module,
        forward: Callable[..., Tensor],
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return the output of a layer with the adapters of the rows, or of the modules in its place."""
        batch = self._batch.get()
        if batch is None or name not in batch.layers:
            return forward(x, *args, **kwargs)
        layers, heads = batch.of_layer(name, x)
        if args or kwargs:
            forward = partial(forward, *args, **kwargs)
        return with_heads(heads, layer, forward, x) if heads else with_changes(layers, forward, x)


def _check_count(rows: int, adapters: Sequence[str | None]) -> None:
    if rows != len(adapters):
        raise SpecError(f"there are {rows} rows and {len(adapters)} adapters; name one for each row.")
