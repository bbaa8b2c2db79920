"""Requests of the server: whose they are, their way through the scheduler, and the answers to errors."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, final

from fastapi import Depends, Path, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from rankfold.errors import (
    AdapterFileError,
    DiskError,
    OutputExistsError,
    RankfoldError,
    StoreError,
    UnknownAdapterError,
)
from rankfold.serve.engine import Engine, Row, TooLongError
from rankfold.serve.http.guard import error_body
from rankfold.serve.http.keys import ANYONE, ApiKey, Keys
from rankfold.serve.http.messages import Usage
from rankfold.serve.scheduler import (
    GENERATE,
    CancelledError,
    ClosedError,
    DeadlineError,
    QueueFullError,
    Ticket,
)

logger = logging.getLogger("rankfold.serve")

MOST_MODELS = 10_000
"""The most models of a page."""


@final
@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits of a server.

    Args:
        body_bytes: The most bytes of a request.
        adapter_bytes: The most bytes of an adapter that is put.
        body_seconds: The time in which a request has to arrive.
        timeout: Seconds in which embeddings and classes have to be answered.
        generation_timeout: Seconds in which texts have to be continued.
        metrics_by_adapter: Whether requests are counted for each adapter.
    """

    body_bytes: int = 4 << 20
    adapter_bytes: int = 256 << 20
    body_seconds: float = 30.0
    timeout: float = 30.0
    generation_timeout: float = 300.0
    metrics_by_adapter: bool = False


@final
class HttpError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: One sentence.
        code: OpenAI's word for it.
        headers: Of the answer.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(error_body(self.status, str(self), self.code), self.status, self.headers)


_ANSWERS: Sequence[tuple[type[Exception], int, str | None]] = (
    (QueueFullError, 429, "queue_full"),
    (DeadlineError, 504, "deadline"),
    (CancelledError, 499, "client_gone"),  # as nginx counts it; nobody gets it
    (ClosedError, 503, "shutting_down"),
    (TooLongError, 400, "context_length_exceeded"),
    (DiskError, 507, "disk_full"),
    (StoreError, 503, "store_unavailable"),
    (OutputExistsError, 409, "exists"),
    (AdapterFileError, 422, "adapter_unusable"),
    (RankfoldError, 400, None),
)
"""Errors with the status and the code of their answer; the first that fits counts."""

_RETRY_STATUS = 503


def as_http(error: BaseException) -> HttpError:
    """Return the answer for an error; of those that are not rankfold's the client learns nothing."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, UnknownAdapterError):  # deleted since the request came
        return missing_model(error.adapter)
    for kind, status, code in _ANSWERS:
        if isinstance(error, kind):
            seconds = error.retry_after if isinstance(error, QueueFullError) else 1
            is_passing = isinstance(error, QueueFullError) or status == _RETRY_STATUS
            return HttpError(status, str(error), code, {"Retry-After": str(seconds)} if is_passing else None)
    logger.error("a request failed", exc_info=error)
    return HttpError(500, "the server failed to answer; its log says more.")


def missing_model(model: str) -> HttpError:
    """Return the answer for an adapter that does not exist, or that the key may not use."""
    return HttpError(
        404, f"the model '{model}' does not exist or you do not have access to it.", "model_not_found"
    )


_bearer = HTTPBearer(auto_error=False, description="A key of the server, if it has any.")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
ModelName = Annotated[str, Path(min_length=1, max_length=255)]


@final
@dataclass(slots=True)
class Service:
    """The answers of the server's endpoints."""

    engine: Engine
    keys: Keys
    options: ServerOptions
    started: int = field(default_factory=lambda: int(time.time()))

    # Keys.

    def key(self, bearer: Bearer) -> ApiKey:
        """Return whose request it is.

        Raises:
            HttpError: If the key is missing or none.
        """
        if self.keys.is_open:
            return ANYONE
        key = None if bearer is None else self.keys.find(bearer.credentials)
        if key is None or key.is_admin:
            raise HttpError(
                401,
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
                "invalid_api_key",
                {"WWW-Authenticate": "Bearer"},
            )
        return key

    def admin(self, bearer: Bearer) -> ApiKey:
        """Return the key of an administrator.

        Raises:
            HttpError: If it is none, or the server has none.
        """
        if not self.keys.has_admin:
            raise HttpError(
                403, "this server has no admin key; start it with RANKFOLD_ADMIN_KEY.", "no_admin_key"
            )
        key = None if bearer is None else self.keys.find(bearer.credentials)
        if key is None or not key.is_admin:
            raise HttpError(
                401,
                "the admin key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
                "invalid_api_key",
                {"WWW-Authenticate": "Bearer"},
            )
        return key

    # Requests.

    async def submit(
        self,
        request: Request,
        key: ApiKey,
        operation: str,
        model: str,
        make: Callable[[str | None], Sequence[Row]],
    ) -> Ticket:
        """Put a request into the queue.

        Args:
            request: The request.
            key: Whose it is.
            operation: Of the scheduler.
            model: The name in the request.
            make: Returns the rows for an adapter.

        Raises:
            HttpError: If the model does not exist or the key may not use it, or there is no room.
        """

        def prepare() -> Sequence[Row]:
            if not (key.may_use(model) and self.engine.has(model)):
                raise missing_model(model)
            return make(self.engine.adapter_of(model))

        try:
            rows = await asyncio.to_thread(prepare)
            request.state.adapter = model
            seconds = self.options.generation_timeout if operation == GENERATE else self.options.timeout
            return self.engine.scheduler.submit(
                operation, rows, timeout=seconds, key=key.name, key_rows=key.rows
            )
        except Exception as error:
            raise as_http(error) from error

    async def answers(self, request: Request, ticket: Ticket, model: str) -> list[Any]:
        """Return the answers of a request; it leaves the queue if the client goes away.

        Raises:
            HttpError: If it fails, or is not answered in its time.
        """
        result = asyncio.wrap_future(ticket.result)
        try:
            async with cancel_if_gone(request, ticket):
                await asyncio.wait({result}, timeout=max(ticket.deadline - time.monotonic(), 0))
            if not result.done():
                ticket.fail(DeadlineError("the request was not answered in its time; try again."))
            return await result
        except Exception as error:
            raise as_http(error) from error
        finally:
            ticket.cancel()


@contextlib.asynccontextmanager
async def cancel_if_gone(request: Request, ticket: Ticket) -> AsyncGenerator[None]:
    """Give a request up as soon as its client goes away within the block, or the block is cancelled."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        ticket.cancel()
        raise
    finally:
        watching.cancel()


def dump(model: BaseModel) -> Response:
    """Return a message as the answer."""
    return Response(model.model_dump_json(), media_type="application/json")


def usage_of(prompt: int, completion: int = 0) -> Usage:
    """Return the tokens of a request."""
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
