"""The guard of the server: requests are read whole, within their size and their time, or refused."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, cast, final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rankfold.store.strict_json import strict_values

MOST_HEADER_BYTES = 16 << 10
"""The most bytes of a request's first line and headers."""


@final
class Guard:
    """ASGI application: refuse bodies that are too large or too slow, and read the others.

    Args:
        app: The application behind it.
        limit: Returns the most bytes of a body for a path.
        seconds: The time in which a body has to arrive.
        observe: Gets the scope, the status and the seconds of every answer, when it begins.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: Callable[[str], int],
        seconds: float,
        observe: Callable[[Scope, int, float], None],
    ) -> None:
        self._app, self._limit, self._seconds, self._observe = app, limit, seconds, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._observe(scope, message["status"], time.perf_counter() - started)
            await send(message)

        await self._serve(scope, receive, send_observed)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limit(scope["path"])
        try:
            async with asyncio.timeout(self._seconds):
                body = await _read_body(scope, receive, limit)
        except TimeoutError:
            message = f"the body did not arrive in {self._seconds:g} seconds; send it again."
            await refuse(send, 408, message)
            return
        except _TooLargeError as error:
            await self._refuse_and_discard(receive, send, error)
            return
        if body is None:  # the client has gone
            return
        if (fault := _json_fault(body)) is not None:
            await refuse(send, 400, fault)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    async def _refuse_and_discard(self, receive: Receive, send: Send, error: "_TooLargeError") -> None:
        """Answer at once, and read on for a while: many clients look for an answer only behind their body."""
        await refuse(send, error.status, str(error), is_last=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                message = await receive()
                while message["type"] != "http.disconnect" and message.get("more_body", False):
                    message = await receive()
        await send({"type": "http.response.body", "body": b""})


class _TooLargeError(Exception):
    """A request with more bytes than are read.

    Args:
        status: Of the answer.
        message: Says which bytes.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """Return the body of a request; None if the client goes away."""
    too_large = _TooLargeError(413, f"the body has more than {limit:,} bytes; send fewer texts at a time.")
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    first_line = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if first_line + sum(len(name) + len(value) for name, value in headers) > MOST_HEADER_BYTES:
        raise _TooLargeError(431, f"the path and the headers have more than {MOST_HEADER_BYTES:,} bytes.")
    length = dict(headers).get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        raise too_large
    chunks, size = [b""], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise too_large
        if not message.get("more_body", False):
            return b"".join(chunks)


def _json_fault(body: bytes) -> str | None:
    """Return why JSON is refused that Python would read and others would not, or not as the same values."""
    if body.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        _ = strict_values(body)
    except UnicodeEncodeError:
        return "the body escapes half a letter (a lone surrogate); send whole ones."
    except ValueError as error:
        return f"the body is no JSON of one meaning ({error}); send an object of UTF-8."
    return None


async def refuse(send: Send, status: int, message: str, *, is_last: bool = True) -> None:
    """Answer, and close the connection behind the last part of the answer."""
    body = json.dumps(error_body(status, message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not is_last})


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_FIRST_SERVER_STATUS = 500


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return an error in OpenAI's shape."""
    kind = "server_error" if status >= _FIRST_SERVER_STATUS else _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@final
class TimedProtocol(H11Protocol):
    """HTTP over a connection that is closed if no whole request comes in time; uvicorn waits without end."""

    SECONDS = 30.0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._watch = self.loop.call_later(self.SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if cast(Any, self.cycle) is None:
            self.transport.close()
