"""Decoding: texts that a causal model continues, where rows join and leave the batch at every token.

Each row has an adapter, a key-value cache and settings of its own. The caches of all rows lie in one tensor a
layer, padded on the left; a row that joins is read in a pass of its own and put beside the others.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, cast, final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from rankfold.errors import AdapterFileError, RankfoldError, SpecError
from rankfold.progress import quiet_libraries
from rankfold.serve.bank import Batch
from rankfold.serve.library import ReadyAdapter
from rankfold.serve.session import Session
from rankfold.tasks.kinds.chat_template import ChatTemplate

_INCOMPLETE = "\ufffd"
"""The end of a decoded text whose last letter needs another token."""


@final
@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to continue, and how.

    Args:
        ids: At least one token.
        max_tokens: The most new tokens.
        temperature: Of the draws; 0 takes the likeliest token.
        top_p: Draw among the likeliest tokens that together have this probability.
        seed: Of the draws; a random one if None.
        stop: Texts that end the continuation, and are not part of it.
        on_text: Gets the continuation piece by piece.
    """

    ids: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    on_text: Callable[[str], None] | None = None


@final
@dataclass(frozen=True, slots=True)
class Continuation:
    """The text that continues a prompt.

    Args:
        text: Without special tokens.
        tokens: How many tokens were generated.
        finish_reason: `stop` at an end of text or a stop text, `length` at `max_tokens`.
    """

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


@final
class TextStream:
    """Tokens become text piece by piece; nothing of a stop text is passed on.

    Args:
        tokenizer: The model's.
        stop: Texts that end the stream.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._ids: list[int] = []
        self._start = self._end = 0
        self._pending = ""
        self.text = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the text that is sure by now."""
        self._ids.append(token)
        # Some tokens are written in another way behind others, so the last piece is decoded again with them.
        known, text = self._decode(self._start, self._end), self._decode(self._start, len(self._ids))
        if len(text) <= len(known) or text.endswith(_INCOMPLETE):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return self._pass_on(text[len(known) :])

    def finish(self) -> str:
        """Return the rest of the text."""
        known, text = self._decode(self._start, self._end), self._decode(self._start, len(self._ids))
        rest = "" if self.is_stopped else self._pass_on(text[len(known) :])
        pending, self._pending = self._pending, ""
        self.text += pending
        return rest + pending

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)

    def _pass_on(self, piece: str) -> str:
        text = self._pending + piece
        cuts = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if cuts:
            self.is_stopped, text, self._pending = True, text[: min(cuts)], ""
        else:
            sure = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
            text, self._pending = text[:sure], text[sure:]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text with which a stop text begins."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)


@final
class DecodingRow:
    """A prompt that is being continued.

    Args:
        prompt: The prompt.
        adapter: Its adapter, which stays in its slot; None for the base model.
        stream: Turns its tokens into text.

    Attributes:
        result: The continuation, or the error that ended it; None while it goes on.
    """

    def __init__(self, prompt: Prompt, adapter: ReadyAdapter | None, stream: TextStream) -> None:
        self.prompt, self.adapter, self.stream = prompt, adapter, stream
        self.held = ExitStack()
        self.tokens = 0
        self.token = 0
        self.result: Continuation | Exception | None = None
        self._generator: torch.Generator | None = None

    def choose(self, logits: Tensor) -> int:
        """Return the next token for logits [vocabulary].

        Raises:
            AdapterFileError: If they are not finite.
        """
        if not bool(logits.amax().isfinite()):
            raise AdapterFileError(
                "the model's output is not a finite number, so the adapter's weights or settings are of no "
                "use; restore the adapter, or train it again."
            )
        if not self.prompt.temperature:
            return int(logits.argmax())
        if self._generator is None:
            seed = secrets.randbits(63) if self.prompt.seed is None else self.prompt.seed
            self._generator = torch.Generator(logits.device).manual_seed(seed)
        # The largest is 0 first, so that no temperature, however small, makes it infinite.
        shares = ((logits.double() - logits.amax()) / self.prompt.temperature).softmax(-1)
        if self.prompt.top_p < 1:
            ordered, order = shares.sort(descending=True)
            is_surplus = ordered.cumsum(-1) - ordered >= self.prompt.top_p
            shares = shares.index_fill(-1, order[is_surplus], 0.0)
        return int(torch.multinomial(shares, 1, generator=self._generator))


@final
class Decoder:
    """Rows of a causal model that are continued together, each with its adapter.

    One thread uses it.

    Args:
        session: The model with its adapters and tokenizer.
        most_rows: The most rows at once; each keeps one slot of the bank.

    Raises:
        SpecError: If the model does not continue text, or keeps other states than keys and values.
    """

    def __init__(self, session: Session, most_rows: int = 32) -> None:
        self._session, self.most_rows = session, most_rows
        self.rows: list[DecodingRow] = []
        self._cache: DynamicCache | None = None
        self._mask = torch.empty(0, 0, dtype=torch.long)
        self._batch: Batch | None = None
        tokenizer = session.processor
        ends = (tokenizer.eos_token_id, ChatTemplate(tokenizer).end_of_turn())
        self._ends = {token for token in ends if token is not None}
        self._check_model()

    def _check_model(self) -> None:
        try:
            (row,) = self.join([Prompt([0], 2)], [None])
            self.step()
        except (RankfoldError, TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
            raise SpecError(
                f"the model cannot continue texts row by row ({error}); serve one that is causal, with "
                "attention in all its layers."
            ) from error
        finally:
            self.drop(self.rows)
        if isinstance(row.result, Exception):
            raise row.result

    def join(self, prompts: Sequence[Prompt], adapters: Sequence[str | None]) -> list[DecodingRow]:
        """Read prompts in one pass, and put their rows beside those that are under way.

        Args:
            prompts: No more than there is room for.
            adapters: The name of each prompt's adapter; None for the base model.

        Returns:
            The rows; each has its first token, and may have its result already.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If an adapter is unknown or cannot be served.
            StoreError: If the store cannot be read.
        """
        rows: list[DecodingRow] = []
        with ExitStack() as undo:
            for prompt, name in zip(prompts, adapters, strict=True):
                row = DecodingRow(prompt, None, TextStream(self._session.processor, prompt.stop))
                undo.callback(row.held.close)
                (row.adapter,) = row.held.enter_context(self._session.bank.hold([name]))
                rows.append(row)
            width = max(len(prompt.ids) for prompt in prompts)
            ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
            for index, prompt in enumerate(prompts):
                ids[index, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
                mask[index, width - len(prompt.ids) :] = 1
            batch = self._session.bank.batch_of([row.adapter for row in rows])
            cache = DynamicCache()
            logits = self._run(batch, ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
            if any(type(layer).__name__ != "DynamicLayer" for layer in cache.layers):
                raise SpecError("the model keeps states of another kind; serve one that has attention only.")
            undo.pop_all()
        self._merge(cache, mask)
        self.rows += rows
        self._advance(rows, logits)
        return rows

    def step(self) -> None:
        """Add one token to every row; rows that are done leave with their result."""
        if not self.rows:
            return
        if self._batch is None:
            self._batch = self._session.bank.batch_of([row.adapter for row in self.rows], keep=True)
        ids = torch.tensor([[row.token] for row in self.rows])
        self._mask = functional.pad(self._mask, (0, 1), value=1)
        positions = self._mask.sum(1, keepdim=True) - 1
        assert self._cache is not None
        self._advance(list(self.rows), self._run(self._batch, ids, self._mask, positions, self._cache))

    def drop(self, rows: Sequence[DecodingRow]) -> None:
        """Remove rows from the batch, and give their slots back."""
        leaving = set(map(id, rows))
        stay = [index for index, row in enumerate(self.rows) if id(row) not in leaving]
        for row in rows:
            row.held.close()
        if len(stay) == len(self.rows):
            return
        self.rows, self._batch = [self.rows[index] for index in stay], None
        if not stay:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        index = torch.tensor(stay)
        mask = self._mask.index_select(0, index)
        start = int(mask.argmax(1).amin())  # columns in which nobody has a token
        self._mask = mask[:, start:]
        for layer in self._layers():
            at = index.to(layer.keys.device)
            layer.keys = layer.keys.index_select(0, at)[:, :, start:]
            layer.values = layer.values.index_select(0, at)[:, :, start:]

    def _run(self, batch: Batch, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Return the logits of the last token of each row, [rows, vocabulary], on the CPU."""
        model = cast(Any, self._session.model)
        with self._session.using(batch), quiet_libraries():
            output = model(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                position_ids=positions.to(model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return output.logits[:, -1].float().cpu()

    def _merge(self, cache: DynamicCache, mask: Tensor) -> None:
        """Put the caches of new rows beside those of the others, padded on the left."""
        self._batch = None
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return
        width = max(mask.shape[1], self._mask.shape[1])
        self._mask = torch.cat([_pad_left(self._mask, 1, width), _pad_left(mask, 1, width)])
        for layer, new in zip(self._layers(), cast("list[Any]", cache.layers), strict=True):
            layer.keys = torch.cat([_pad_left(layer.keys, 2, width), _pad_left(new.keys, 2, width)])
            layer.values = torch.cat([_pad_left(layer.values, 2, width), _pad_left(new.values, 2, width)])

    def _layers(self) -> list[Any]:
        return [] if self._cache is None else cast("list[Any]", self._cache.layers)

    def _advance(self, rows: Sequence[DecodingRow], logits: Tensor) -> None:
        """Choose the next token of each row, and let those that are done leave."""
        for row, scores in zip(rows, logits, strict=True):
            try:
                self._extend(row, row.choose(scores))
            except Exception as error:  # of this row alone, such as from its `on_text`
                row.result = error
        self.drop([row for row in rows if row.result is not None])

    def _extend(self, row: DecodingRow, token: int) -> None:
        row.token, row.tokens = token, row.tokens + 1
        is_end = token in self._ends
        piece = "" if is_end else row.stream.push(token)
        is_full = row.tokens >= row.prompt.max_tokens
        if is_end or is_full or row.stream.is_stopped:
            piece += row.stream.finish()
            is_stop = is_end or row.stream.is_stopped
            row.result = Continuation(row.stream.text, row.tokens, "stop" if is_stop else "length")
        if piece and row.prompt.on_text is not None:
            row.prompt.on_text(piece)


def _pad_left(tensor: Tensor, axis: int, width: int) -> Tensor:
    """Return a tensor with zeros before its entries of an axis, up to a width."""
    sizes = list(tensor.shape)
    sizes[axis] = width - sizes[axis]
    return tensor if sizes[axis] == 0 else torch.cat([tensor.new_zeros(sizes), tensor], axis)
