"""Endpoints that continue texts: completions and chats, whole or as a stream of pieces."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, final

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from rankfold.serve.decoding import Continuation
from rankfold.serve.engine import Generation, Row
from rankfold.serve.http.guard import error_body
from rankfold.serve.http.keys import ApiKey
from rankfold.serve.http.messages import (
    ChatAnswer,
    ChatChoice,
    ChatRequest,
    CompletionAnswer,
    CompletionChoice,
    CompletionRequest,
    Reply,
    SamplingRequest,
    Usage,
    inputs_of,
)
from rankfold.serve.http.service import Service, as_http, cancel_if_gone, dump, usage_of
from rankfold.serve.scheduler import GENERATE, DeadlineError, Ticket


def _generation(body: SamplingRequest, max_tokens: int | None) -> Generation:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    return Generation(max_tokens, body.temperature or 0.0, body.top_p or 1.0, body.seed, stop)


@final
class _Writer:
    """Writes continuations as completions or as the turns of a chat, whole or in pieces.

    Args:
        model: The name in the request.
        is_chat: Whether they are turns.
        prompt_tokens: Of all prompts.
    """

    def __init__(self, model: str, prompt_tokens: int, *, is_chat: bool) -> None:
        self.model, self.is_chat, self._prompt_tokens = model, is_chat, prompt_tokens
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, done: Sequence[Continuation]) -> ChatAnswer | CompletionAnswer:
        """Return the answer."""
        usage = self.usage(done)
        if self.is_chat:
            choices = [
                ChatChoice(index=i, message=Reply(content=one.text), finish_reason=one.finish_reason)
                for i, one in enumerate(done)
            ]
            return ChatAnswer(
                id=self._id, created=self._created, model=self.model, choices=choices, usage=usage
            )
        texts = [
            CompletionChoice(index=i, text=one.text, finish_reason=one.finish_reason)
            for i, one in enumerate(done)
        ]
        return CompletionAnswer(
            id=self._id, created=self._created, model=self.model, choices=texts, usage=usage
        )

    def usage(self, done: Sequence[Continuation]) -> Usage:
        """Return the tokens of the request."""
        return usage_of(self._prompt_tokens, sum(one.tokens for one in done))

    def piece(self, index: int, text: str, finish_reason: str | None = None, *, first: bool = False) -> str:
        """Return a piece of a stream."""
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason, "logprobs": None}
        if self.is_chat:
            role = {"role": "assistant"} if first else {}
            choice["delta"] = role | ({"content": text} if text or first else {})
        else:
            choice["text"] = text
        return self.event([choice])

    def event(self, choices: Sequence[Any], usage: Usage | None = None) -> str:
        """Return an event of a stream."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        values = {"id": self._id, "object": kind, "created": self._created, "model": self.model}
        values |= {"choices": list(choices)} | ({} if usage is None else {"usage": usage.model_dump()})
        return f"data: {json.dumps(values)}\n\n"


Pieces = asyncio.Queue[tuple[int, str] | None]
"""Pieces of text with the index of their row; None at the end."""


def add_generation(app: FastAPI, service: Service) -> None:
    """Add the endpoints to an application."""
    engine, key_of = service.engine, Depends(service.key)

    @app.post("/v1/completions", responses={200: {"model": CompletionAnswer}})
    async def completions(  # pyright: ignore[reportUnusedFunction]
        body: CompletionRequest, request: Request, key: Annotated[ApiKey, key_of]
    ) -> Response:
        """Continue each prompt; greedily, unless a temperature is named."""
        prompts, generation = inputs_of(body.prompt), _generation(body, body.max_tokens)
        return await _generate(
            service, request, key, body, lambda adapter: engine.completion_rows(prompts, adapter, generation)
        )

    @app.post("/v1/chat/completions", responses={200: {"model": ChatAnswer}})
    async def chat(  # pyright: ignore[reportUnusedFunction]
        body: ChatRequest, request: Request, key: Annotated[ApiKey, key_of]
    ) -> Response:
        """Answer a conversation; greedily, unless a temperature is named."""
        generation = _generation(body, body.max_completion_tokens or body.max_tokens)
        turns = [("system" if turn.role == "developer" else turn.role, turn.text) for turn in body.messages]
        return await _generate(
            service, request, key, body, lambda adapter: engine.chat_rows(turns, adapter, generation)
        )


async def _generate(
    service: Service,
    request: Request,
    key: ApiKey,
    body: ChatRequest | CompletionRequest,
    make: Callable[[str | None], Sequence[Row]],
) -> Response:
    """Continue the prompts of a request, and return all texts or a stream of their pieces."""
    loop, pieces, tokens = asyncio.get_running_loop(), Pieces(), 0

    def put(item: tuple[int, str] | None) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(pieces.put_nowait, item)

    def make_rows(adapter: str | None) -> Sequence[Row]:
        nonlocal tokens
        rows = make(adapter)
        tokens = sum(length for _, _, length in rows)
        if not body.stream:
            return rows
        return [
            (replace(prompt, on_text=partial(_put_piece, put, index)), adapter, length)
            for index, (prompt, adapter, length) in enumerate(rows)
        ]

    ticket = await service.submit(request, key, GENERATE, body.model, make_rows)
    writer = _Writer(body.model, tokens, is_chat=isinstance(body, ChatRequest))
    if not body.stream:
        return dump(writer.whole(await service.answers(request, ticket, body.model)))
    ticket.result.add_done_callback(lambda _: put(None))
    async with cancel_if_gone(request, ticket):
        first = await _next_piece(pieces, ticket)
    if first is None and (error := ticket.result.exception()) is not None:
        raise as_http(error)
    has_usage = body.stream_options is not None and body.stream_options.include_usage
    events = _events(writer, ticket, pieces, first, has_usage=has_usage)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _put_piece(put: Callable[[tuple[int, str]], None], index: int, text: str) -> None:
    put((index, text))


async def _next_piece(pieces: Pieces, ticket: Ticket) -> tuple[int, str] | None:
    """Return the next piece; None once the request has ended."""
    try:
        return await asyncio.wait_for(pieces.get(), max(ticket.deadline - time.monotonic(), 0))
    except TimeoutError:
        ticket.fail(DeadlineError("the request was not answered in its time; ask for fewer tokens."))
        return None


async def _events(
    writer: _Writer, ticket: Ticket, pieces: Pieces, item: tuple[int, str] | None, *, has_usage: bool
) -> AsyncIterator[str]:
    """Yield the events of a stream; a client that goes away takes its rows out of the batch."""
    begun: set[int] = set()
    try:
        while item is not None:
            index, text = item
            yield writer.piece(index, text, first=index not in begun)
            begun.add(index)
            item = await _next_piece(pieces, ticket)
        if (error := ticket.result.exception()) is not None:
            yield f"data: {json.dumps(error_body(as_http(error).status, str(as_http(error))))}\n\n"
            return
        done: list[Continuation] = ticket.result.result()
        for index, one in enumerate(done):
            yield writer.piece(index, "", one.finish_reason, first=index not in begun)
        if has_usage:
            yield writer.event([], writer.usage(done))
        yield "data: [DONE]\n\n"
    finally:
        ticket.cancel()
