"""Run an application on a socket until a signal ends it."""

import asyncio
import socket
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from rankfold.errors import SpecError
from rankfold.serve.http.guard import MOST_HEADER_BYTES, TimedProtocol

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; connections wait until the server runs.

    Args:
        host: An address or a name.
        port: 0 takes a free one.

    Raises:
        SpecError: If it cannot.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SpecError(
            f"cannot listen at {host}:{port} ({error.strerror}); name another --host or --port."
        ) from error


class _Server(uvicorn.Server):
    """A server that ends by its own return, so that the program after it can clean up."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End, and forget the signal."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def make_server(app: FastAPI, *, connections: int = 512, grace: float = 30.0) -> uvicorn.Server:
    """Return a server for an application; `serve(sockets=[...])` runs it, and `should_exit` ends it.

    Args:
        app: Made by `make_app`.
        connections: The most connections; others get status 503.
        grace: Seconds in which requests that run are answered at the end.
    """
    config = uvicorn.Config(
        cast(Any, app),
        http=TimedProtocol,
        ws="none",
        log_config=None,
        log_level="error",  # a flood of wrong requests must not fill a log
        access_log=False,
        server_header=False,
        limit_concurrency=connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(round(grace), 1),
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )
    return _Server(config)


def run(app: FastAPI, listener: socket.socket, *, connections: int = 512, grace: float = 30.0) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that run are answered.

    Args:
        app: Made by `make_app`.
        listener: From `listen`.
        connections: The most connections.
        grace: Seconds in which requests that run are answered at the end.
    """
    server = make_server(app, connections=connections, grace=grace)
    asyncio.run(server.serve(sockets=[listener]))
