"""The server: a model with all adapters of a store over HTTP, by OpenAI's API.

The name of a model in a request is that of an adapter. An adapter that does not exist, and one that the key
may not use, get the same answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, final

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from rankfold.errors import RankfoldError, SpecError
from rankfold.serve.engine import Engine, EngineOptions, load_base
from rankfold.serve.http.admin import add_admin
from rankfold.serve.http.answers import add_answers, add_models
from rankfold.serve.http.generation import add_generation
from rankfold.serve.http.guard import Guard, error_body
from rankfold.serve.http.keys import Keys
from rankfold.serve.http.messages import ErrorAnswer, Health
from rankfold.serve.http.metrics import Metrics
from rankfold.serve.http.service import HttpError, ServerOptions, Service, as_http


@final
@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Model, adapters and limits of a server, as a value that can be sent to other processes.

    Args:
        model: `minilm`, `smollm2`, a folder, a GGUF file or a hub id.
        store: The file of the store of the adapters, if any.
        adapters: Folders or packed files of adapters that are in no store, by name.
        name: Of the model without an adapter; the last part of `model` if None.
        kind: The kind of task that the model's head is for; the usual one of its architecture if None.
        trust_remote_code: Whether Python code that comes with the model's files may run.
        size: Of the engine.
        options: Limits of the server.
    """

    model: str
    store: Path | None = None
    adapters: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str | None = None
    kind: str | None = None
    trust_remote_code: bool = False
    size: EngineOptions = field(default_factory=EngineOptions)
    options: ServerOptions = field(default_factory=ServerOptions)

    def load(self) -> Engine:
        """Return an engine with the model and its adapters.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If the model or an adapter cannot be served, or a name is taken.
            StoreError: If the store cannot be read.
        """
        loaded = load_base(self.model, self.kind, trust_remote_code=self.trust_remote_code)
        engine = Engine(self.name or Path(self.model).resolve().name, loaded, self.store, self.size)
        for adapter, path in self.adapters.items():
            if engine.has(adapter):
                raise SpecError(f"the model or the store has the name '{adapter}', too; choose another NAME.")
            engine.bank.add(adapter, path)
        return engine


@final
class _Status:
    """Endpoints that say how the server is."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._engine, self._metrics = service.engine, metrics

    def add_to(self, app: FastAPI, key: Any) -> None:
        """Add the endpoints to an application."""
        page = (files("rankfold.serve.http") / "page.html").read_text("utf-8")

        @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
        def index() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
            return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

        for path, endpoint in (("/health", self.health), ("/ready", self.ready)):
            app.get(path)(endpoint)
            app.head(path, include_in_schema=False)(endpoint)  # as balancers of load ask
        app.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(key)])(self.metrics)

    async def health(self) -> Health:
        """Say whether the process is alive."""
        return Health(status="ok")

    async def ready(self) -> Health:
        """Say whether requests are answered: the model is loaded and the store can be read."""
        if not self._engine.scheduler.is_alive:
            raise HttpError(503, "the server is shutting down.", "shutting_down", {"Retry-After": "1"})
        await asyncio.to_thread(self._engine.bank.has, self._engine.name)
        return Health(status="ready")

    async def metrics(self) -> PlainTextResponse:
        """Return counts and times in the format of Prometheus."""
        return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:"
)
"""The page has everything in itself and asks this server alone."""


def make_app(engine: Engine, keys: Keys, options: ServerOptions | None = None) -> FastAPI:
    """Return the application, with its document of OpenAPI at `/openapi.json`.

    Args:
        engine: Answers; the application closes it at its end.
        keys: Who may ask.
        options: Limits.
    """
    options = options or ServerOptions()
    service = Service(engine, keys, options)
    metrics = Metrics(engine, by_adapter=options.metrics_by_adapter)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await asyncio.to_thread(engine.close, timeout=5.0)

    def limit(path: str) -> int:
        return options.adapter_bytes if path.startswith("/admin/") else options.body_bytes

    app = FastAPI(
        title="rankfold",
        version=version("rankfold"),
        description=(__doc__ or "").strip(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_ERRORS,
    )
    for kind in (RequestValidationError, HTTPException, HttpError, RankfoldError, Exception):
        app.add_exception_handler(kind, _explain)
    _Status(service, metrics).add_to(app, service.key)
    add_models(app, service)
    add_answers(app, service)
    add_generation(app, service)
    add_admin(app, service)
    app.add_middleware(
        cast(Any, Guard),
        limit=limit,
        seconds=options.body_seconds,
        observe=metrics.observe,
    )
    return app


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The request is wrong.",
        401: "The key is missing or wrong.",
        404: "There is no such model, or the key may not use it.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        422: "The adapter cannot be used.",
        429: "The queue is full; try again after the seconds of Retry-After.",
        503: "The server is shutting down, or its store cannot be read.",
        504: "The request was not answered in its time.",
        507: "A disk of the server is full.",
    }.items()
}


async def _explain(request: Request, error: Exception) -> Response:
    """Return the answer for an error of a request."""
    match error:
        case RequestValidationError():
            return _explain_fields(request, error)
        case HTTPException():
            texts = {
                400: "the body cannot be read; send JSON in UTF-8.",
                404: "there is nothing at this path; /openapi.json lists those that there are.",
                405: "the path does not take this method.",
            }
            message = texts.get(error.status_code, f"{error.detail}.")
            headers = dict(error.headers or {})
            return HttpError(error.status_code, message, headers=headers).response()
        case _:
            return as_http(error).response()


_SENTENCES = {
    "json_invalid": "This is no JSON; send an object",
    "extra_forbidden": "The server does not have this field, or this value of it; leave it out",
}
"""Sentences in place of pydantic's, by the type of its error."""


def _explain_fields(request: Request, error: RequestValidationError) -> Response:
    """Return the answer for a request whose fields are wrong: a sentence about the first of them."""
    first = error.errors()[0]
    kind: str = first["type"]
    place = "" if kind == "json_invalid" else ".".join(str(part) for part in first["loc"][1:])
    sentence = _SENTENCES.get(kind, str(first["msg"])).removeprefix("Value error, ")
    if not place and kind != "value_error" and "json" not in request.headers.get("Content-Type", ""):
        sentence = "send it with the header 'Content-Type: application/json'"
    message = f"{sentence}." if kind == "value_error" else f"{place or 'the body'}: {sentence}."
    return JSONResponse(error_body(400, message, kind, place or None), 400)
