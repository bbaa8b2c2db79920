"""Ray Serve: replicas of the server on many machines, each adapter on the replica that has it ready.

A gateway takes the requests and hands each to a replica, which is the whole server with an engine of its own.
Requests for one adapter go to one replica for as long as it has room, so that they find the adapter in its
slot; if it is full or gone, to the next in an order that each adapter has of its own (rendezvous hashing). A
replica that comes or goes moves the adapters of one replica, and no others.

`serve run rankfold.serve.ray_app:app model=minilm store=/shared/adapters.db` deploys it on a cluster, and
`rankfold serve --ray` on this machine. All machines must see the same store, at the same path.
"""

import asyncio
import json
import logging
import random
import threading
from collections.abc import AsyncGenerator, MutableMapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast, final

from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RequestCancelledError
from ray.serve.request_router import RequestRouter
from starlette.types import Message, Receive, Scope, Send

from rankfold.errors import SpecError
from rankfold.serve.engine import EngineOptions
from rankfold.serve.http.app import ServerSpec, make_app
from rankfold.serve.http.guard import Guard, refuse
from rankfold.serve.http.keys import Keys, read_keys
from rankfold.serve.http.service import ServerOptions

logger = logging.getLogger("rankfold.serve")

serve = cast(Any, ray_serve)
"""Its types are not complete."""

_REPLICAS, _APP = "Replicas", "rankfold"
_FULL = 64
"""The most requests that a replica has at once before others take those for its adapters."""

_PLAIN = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")
_SENT = (*_PLAIN, "headers", "client", "server")
"""Parts of a request that are sent to a replica."""


@final
class HashRouter(RequestRouter):
    """Router that orders the replicas by a hash of the adapter's name and theirs."""

    async def choose_replicas(self, candidate_replicas: Any, pending_request: Any = None) -> Any:
        """Return the replicas, each a rank of its own; requests without an adapter's name go to any."""
        name = "" if pending_request is None else pending_request.metadata.multiplexed_model_id
        if not name:
            return [random.sample(candidate_replicas, len(candidate_replicas))]
        return [[replica] for replica in sorted(candidate_replicas, key=lambda one: _weight(name, one))]


def _weight(name: str, replica: Any) -> bytes:
    return sha256(f"{name}\0{replica.replica_id.unique_id}".encode()).digest()


@final
class _Replica:
    """The server with an engine of its own; it answers requests that a gateway has read.

    Args:
        spec: What it serves.
        keys: Who may ask.
    """

    def __init__(self, spec: ServerSpec, keys: Keys) -> None:
        self._engine = spec.load()
        self._app = make_app(self._engine, keys, spec.options)

    async def answer(self, scope: MutableMapping[str, Any], body: bytes) -> AsyncGenerator[Message]:
        """Yield the messages of the answer; the request is given up when the caller leaves."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return requests.pop() if requests else await asyncio.Future[Message]()

        async def work() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                await messages.put(None)

        task = asyncio.create_task(work())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()

    def check_health(self) -> None:
        """Let Ray replace the replica when its thread has ended.

        Raises:
            RuntimeError: If it has.
        """
        if not self._engine.scheduler.is_alive:
            raise RuntimeError("the scheduler has ended")


@final
class _Gateway:
    """ASGI application: hand each request to the replica of its adapter."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, whose body `Guard` has read."""
        if scope["type"] == "lifespan":  # replicas start and end by themselves
            await _answer_lifespan(receive, send)
            return
        body = (await receive()).get("body", b"")
        replicas: Any = serve.get_deployment_handle(_REPLICAS)  # of the same application, whatever its name
        replicas = replicas.options(stream=True, multiplexed_model_id=_adapter_of(body))
        answer = replicas.answer.remote({name: scope[name] for name in _SENT if name in scope}, body)
        gone = asyncio.create_task(_wait_until_gone(receive, answer))
        has_begun = False
        try:
            async for message in answer:
                has_begun = True
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    gone.cancel()  # a connection that ends behind the answer
                await send(message)
        except RequestCancelledError:  # the client has gone
            return
        except RayError as error:
            if has_begun:  # the client sees that the answer breaks off
                raise
            await refuse(send, 503, f"the replica has ended ({type(error).__name__}); try again.")
        finally:
            gone.cancel()


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    message: Message = {"type": ""}
    while message["type"] != "lifespan.shutdown":
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


async def _wait_until_gone(receive: Receive, answer: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel()


def _adapter_of(body: bytes) -> str:
    """Return the name of the adapter in a request; "" if it names none, and any replica may answer."""
    try:
        values = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return ""
    name = cast("dict[str, Any]", values).get("model") if isinstance(values, dict) else None
    return name if isinstance(name, str) else ""


def _leave_to_replicas(scope: Scope, status: int, seconds: float) -> None:
    """Count no request; the replicas do."""


def _make_gateway(limits: ServerOptions) -> Guard:
    return Guard(
        _Gateway(),
        limit=lambda path: limits.adapter_bytes if path.startswith("/admin/") else limits.body_bytes,
        seconds=limits.body_seconds,
        observe=_leave_to_replicas,
    )


def deploy(
    spec: ServerSpec,
    keys: Keys,
    *,
    replicas: int = 2,
    most_replicas: int | None = None,
    connections: int = 512,
    grace: float = 30.0,
) -> Any:
    """Return the application for `run`, or for `ray.serve.run` by the name of `rankfold`.

    Args:
        spec: What each replica serves.
        keys: Who may ask.
        replicas: How many replicas there are, or are at least.
        most_replicas: How many load can make them; as many as there are if None.
        connections: The most requests at once.
        grace: Seconds in which requests that run are answered when a replica ends.

    Raises:
        SpecError: If these numbers do not go together.
    """
    if replicas < 1 or (most_replicas is not None and most_replicas < replicas):
        raise SpecError(
            f"there cannot be {replicas} to {most_replicas} replicas; give 1 or more, and no less."
        )
    options: dict[str, Any] = {"num_replicas": replicas}
    if most_replicas is not None:
        scale = {"min_replicas": replicas, "max_replicas": most_replicas}
        options = {"autoscaling_config": scale | {"target_ongoing_requests": _FULL // 2}}
    options |= {"max_ongoing_requests": _FULL, "graceful_shutdown_timeout_s": grace}
    options["request_router_config"] = {"request_router_class": HashRouter}
    made = serve.deployment(name=_REPLICAS, **options)(_Replica).bind(spec, keys)
    # A gateway only hands on, and needs no processor for it.
    options = {"max_ongoing_requests": connections, "ray_actor_options": {"num_cpus": 0}}
    gateway = serve.ingress(lambda: _make_gateway(spec.options))()
    return serve.deployment(name="Gateway", **options)(gateway).bind(made)


@final
class RayOptions(BaseModel):
    """Arguments of `serve run rankfold.serve.ray_app:app`.

    Args:
        model: `minilm`, `smollm2`, a folder, a GGUF file or a hub id.
        store: The file of the store, at a path that all machines see.
        name: Of the model without an adapter.
        keys: File of API keys, read where the command runs, as are the keys of the environment.
        slots: The most adapters that are ready at once, on each replica.
        replicas: How many replicas there are, or are at least.
        most_replicas: How many load can make them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    store: Path | None = None
    name: str | None = None
    keys: Path | None = None
    slots: int = Field(default=256, ge=2)
    replicas: int = Field(default=2, ge=1)
    most_replicas: int | None = None


def app(args: RayOptions) -> Any:
    """Return the application, as Ray's command `serve` asks for it."""
    store = None if args.store is None else args.store.resolve()
    spec = ServerSpec(args.model, store=store, name=args.name, size=EngineOptions(slots=args.slots))
    return deploy(spec, read_keys(args.keys), replicas=args.replicas, most_replicas=args.most_replicas)


def start(application: Any, host: str, port: int) -> None:
    """Serve an application of `deploy` on the cluster of RAY_ADDRESS or a new one; return when it answers.

    Args:
        application: The application.
        host: An address.
        port: Of HTTP.
    """
    serve.start(http_options={"host": host, "port": port})
    serve.run(application, name=_APP, route_prefix="/")


def run(application: Any, host: str, port: int) -> None:
    """Serve as `start` does, until Ctrl-C or SIGTERM.

    Args:
        application: The application.
        host: An address.
        port: Of HTTP.
    """
    try:
        start(application, host, port)
        logger.info("serving at http://%s:%d.", host, port)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
