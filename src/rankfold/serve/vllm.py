"""LoRA resolver for vLLM: fold an adapter of a store to a plain LoRA when a request names it.

vLLM finds `register` by its entry point and calls `resolve_lora` of the resolver for a name that it does not
know. It remembers the answer for as long as it runs, so `StoreMiddleware` puts a table in place of its memory
that asks the store again. This file imports without vLLM, and rankfold does not install it.
"""

import asyncio
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from typing import Any, cast, final

import torch
from peft import PeftType

from rankfold.errors import NotExactError, SpecError
from rankfold.export.base import RankfoldAdapter
from rankfold.export.formats.plain_lora import write_plain_lora
from rankfold.export.label_scale import fold_label_scale
from rankfold.files import CONFIG_NAME
from rankfold.models.gguf import cache_dir
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.serve.folded import FoldedCache, bytes_of
from rankfold.store.adapter import SavedAdapter
from rankfold.store.database import Database
from rankfold.store.loading import peft_config
from rankfold.store.rounding import restore
from rankfold.store.rows import digests, load, names, select
from rankfold.tasks.kinds import find_kind, kind_names

logger = logging.getLogger("rankfold.serve")

STORE_VARIABLE = "RANKFOLD_STORE"
BYTES_VARIABLE = "RANKFOLD_VLLM_BYTES"
RESOLVER_NAME = "rankfold store"

_MIDDLEWARE = "rankfold.serve.vllm.StoreMiddleware"
_MOST_BYTES = 10 << 30
_WAIT_SECONDS = 30.0
_ID_DIGITS = 15
_GRACE_SECONDS = 60.0
"""How long a folder stays after its last request: vLLM may yet read it for one that was broken off."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def register() -> None:
    """Offer the store that the variable RANKFOLD_STORE names to vLLM; do nothing if it names none.

    Raises:
        SpecError: If RANKFOLD_VLLM_BYTES is no number of bytes.
        StoreError: If there is no such store.
    """
    path = os.environ.get(STORE_VARIABLE)
    if path:
        text = os.environ.get(BYTES_VARIABLE, str(_MOST_BYTES))
        if not text.isascii() or not text.isdigit():
            raise SpecError(
                f"{BYTES_VARIABLE}='{text}' is no number of bytes; give one such as {_MOST_BYTES}."
            )
        cache = FoldedCache(cache_dir() / "vllm", int(text))
        _registry().register_resolver(RESOLVER_NAME, StoreResolver(Path(path), cache))


def _registry() -> Any:
    return cast(Any, import_module("vllm.lora.resolver")).LoRAResolverRegistry


@final
@dataclass(slots=True)
class _Use:
    """How the folder of an adapter is used: by how many running requests, and when last."""

    digest: str
    bytes: int
    requests: int = 0
    last: float = 0.0


@final
class StoreResolver:
    """A LoRA resolver, as vLLM calls it, on a store.

    Args:
        path: The store's file.
        cache: The plain LoRAs.

    Raises:
        StoreError: If there is no such store.
    """

    def __init__(self, path: Path, cache: FoldedCache) -> None:
        self._adapters = Database(path, "read", _WAIT_SECONDS)
        # vLLM's loop asks this one, which no adapter that is being read keeps busy.
        self._names = Database(path, "read", _WAIT_SECONDS)
        self._cache = cache
        self._version: object = None
        self._digests: dict[str, str | None] = {}
        self._uses: OrderedDict[str, _Use] = OrderedDict()
        self.table: LoadedAdapters | None = None
        self.most_rank: int | None = None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """Return vLLM's request for an adapter; None if there is none of this name for this base model.

        The request has a name of its own for each version of the adapter: vLLM takes requests of one name for
        one adapter, also where it keeps results of earlier ones.

        Args:
            base_model_name: As vLLM was started with it, and as the adapter's configuration must have it.
            lora_name: The name in the store.

        Raises:
            NotExactError: If no plain LoRA equals the adapter.
            AdapterFileError: If it is damaged.
            SpecError: If its rank is above vLLM's maximum, or vLLM was started without the middleware.
            StoreError: If the store cannot be read.
        """
        if self.table is None:
            raise SpecError(
                "vLLM would go on serving adapters that were replaced or deleted; start it with "
                f"`--middleware {_MIDDLEWARE}`."
            )
        # Folding takes the processor, and vLLM answers others meanwhile.
        match = await asyncio.to_thread(self._fold, base_model_name, lora_name)
        if match is None:
            return None
        folder, digest = match
        internal = f"{lora_name}@{digest}"
        use = self._uses.setdefault(internal, _Use(digest, bytes_of(folder)))
        use.last = time.monotonic()
        self._uses.move_to_end(internal)
        self._make_room(self.table)
        _check_rank(lora_name, folder, self.most_rank)
        request = cast(Any, import_module("vllm.lora.request")).LoRARequest
        number = 1 + int(digest[:_ID_DIGITS], 16)  # vLLM gives it another one
        return request(lora_name=internal, lora_int_id=number, lora_path=str(folder))

    def _fold(self, base: str, name: str) -> tuple[Path, str] | None:
        """Return the folder of an adapter as plain LoRA, and the adapter's digest."""
        with self._adapters.read() as connection:
            records = select(connection, "records.name = ?", [name], limit=1)
            if not records:
                return None
            (record,) = records
            if record.base != base:
                logger.warning("adapter '%s' is for '%s', not for '%s'", name, record.base, base)
                return None
            folder = self._cache.hold(
                record.digest, lambda work: _write(name, restore(load(connection, name)[1]), work)
            )
            return folder, record.digest

    def is_current(self, name: str, request: Any) -> bool:
        """Whether a request of vLLM is for an adapter as the store has it now, or not from the store."""
        use = self._uses.get(request.lora_name)
        return use is None or self._digest(name) == use.digest

    def _digest(self, name: str) -> str | None:
        """Return the digest of an adapter, read again whenever another process has changed the store."""
        with self._names.plain() as connection:
            version = self._names.version
            if version != self._version:
                self._version, self._digests = version, {}
            if name not in self._digests:
                digest = digests(connection, [name]).get(name)
                self._digests[name] = None if digest is None else digest.hex()
            return self._digests[name]

    def is_own(self, name: str) -> bool:
        """Whether a name is one that the resolver gave to a version of an adapter."""
        return name in self._uses

    def names(self, base: str) -> list[str]:
        """Return the names of all adapters for a base model.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._names.read() as connection:
            return names(connection, base)

    def begin(self, request: Any) -> None:
        """Keep the folder of vLLM's request while an HTTP request may need it."""
        if use := self._uses.get(request.lora_name):
            use.requests += 1
            self._uses.move_to_end(request.lora_name)

    def end(self, request: Any) -> None:
        """Note that an HTTP request does not need the folder of vLLM's request any more."""
        if use := self._uses.get(request.lora_name):
            use.requests -= 1
            use.last = time.monotonic()

    def _make_room(self, table: "LoadedAdapters") -> None:
        """Release folders that vLLM cannot need, and forget adapters while they take too much room."""
        surplus = sum(use.bytes for use in self._uses.values()) - self._cache.most_bytes
        loaded = {request.lora_name: name for name, request in table.items()}
        for internal, use in list(self._uses.items())[:-1]:
            if use.requests or (internal in loaded and surplus <= 0):
                continue
            if internal in loaded:
                del table[loaded[internal]]
            surplus -= use.bytes  # now, or at a later call
            if use.last < time.monotonic() - _GRACE_SECONDS:
                del self._uses[internal]
                self._cache.release(use.digest)


@final
class LoadedAdapters(dict[str, Any]):
    """Table of the adapters that vLLM has loaded, without those that were replaced or deleted in the store.

    Within an HTTP request an adapter stays the one that it was at the first look.

    Args:
        resolver: The resolver.
        loaded: vLLM's own table, with the adapters that it was started with.
    """

    def __init__(self, resolver: StoreResolver, loaded: Mapping[str, Any]) -> None:
        super().__init__(loaded)
        self._resolver = resolver

    def __contains__(self, name: object) -> bool:
        """Whether an adapter is loaded, and the store has it so."""
        pins = _pins.get()
        if name in pins:
            return True
        if not super().__contains__(name):
            return False
        if not self._resolver.is_current(cast("str", name), super().__getitem__(cast("str", name))):
            del self[cast("str", name)]
            return False
        self._pin(cast("str", name), super().__getitem__(cast("str", name)))
        return True

    def __getitem__(self, name: str) -> Any:
        """Return vLLM's request for an adapter."""
        pins = _pins.get()
        return pins[name] if name in pins else super().__getitem__(name)

    def __setitem__(self, name: str, request: Any) -> None:
        """Take vLLM's request for an adapter that it has loaded."""
        super().__setitem__(name, request)
        self._pin(name, request)

    def _pin(self, name: str, request: Any) -> None:
        pins = _pins.get()
        if pins is not _NO_REQUEST:
            if name in pins:
                self._resolver.end(pins[name])
            pins[name] = request
            self._resolver.begin(request)


_NO_REQUEST: dict[str, Any] = {}
_pins: ContextVar[dict[str, Any]] = ContextVar("pins", default=_NO_REQUEST)


@final
class StoreMiddleware:
    """Middleware of vLLM's server: adapters are as the store has them, and `/v1/models` lists all of them.

    Start vLLM with `--middleware rankfold.serve.vllm.StoreMiddleware`.

    Args:
        app: The application that it is put around.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        resolver = None if scope["type"] == "lifespan" else _resolver_of(scope["app"].state)
        if resolver is None:
            await self._app(scope, receive, send)
            return
        pins: dict[str, Any] = {}
        token = _pins.set(pins)
        try:
            if scope.get("method") == "GET" and scope["path"].rstrip("/") == "/v1/models":
                send = _ListAll(resolver, send)
            await self._app(scope, receive, send)
        finally:
            _pins.reset(token)
            for request in pins.values():
                resolver.end(request)


def _resolver_of(state: Any) -> StoreResolver | None:
    """Return the resolver of this process, with its table in vLLM's place; None without a store."""
    registry = _registry()
    if RESOLVER_NAME not in registry.get_supported_resolvers():
        return None
    resolver: StoreResolver = registry.get_resolver(RESOLVER_NAME)
    models = state.openai_serving_models
    if resolver.table is None or models.lora_requests is not resolver.table:
        resolver.table = models.lora_requests = LoadedAdapters(resolver, models.lora_requests)
        lora = state.vllm_config.lora_config
        resolver.most_rank = None if lora is None else lora.max_lora_rank
    return resolver


@final
class _ListAll:
    """Sender of an answer to `/v1/models`: the adapters of the store are added to those of vLLM.

    Args:
        resolver: The resolver.
        send: Sends the answer on.
    """

    def __init__(self, resolver: StoreResolver, send: Send) -> None:
        self._resolver, self._send = resolver, send
        self._start: MutableMapping[str, Any] = {}
        self._body = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Take a part of vLLM's answer, and send the whole one after the last."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        if self._start["status"] == HTTPStatus.OK:
            self._body = await asyncio.to_thread(self._complete, self._body)
            others = [pair for pair in self._start["headers"] if pair[0].lower() != b"content-length"]
            self._start["headers"] = [*others, (b"content-length", b"%d" % len(self._body))]
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": self._body})

    def _complete(self, body: bytes) -> bytes:
        """Return vLLM's list with all adapters of the store, by the names that requests use."""
        answer = json.loads(body)
        base = answer["data"][0]
        cards = {card["id"]: card for card in answer["data"] if not self._resolver.is_own(card["id"])}
        for name in self._resolver.names(base["root"]):
            cards.setdefault(name, {**base, "id": name, "parent": base["id"]})
        return json.dumps({**answer, "data": list(cards.values())}).encode()


def _check_rank(name: str, folder: Path, most: int | None) -> None:
    """Check that vLLM can hold the plain LoRA in a folder.

    Raises:
        SpecError: If its rank is too large.
    """
    config = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
    others: Mapping[str, int] = config.get("rank_pattern") or {}
    rank = max(config["r"], *others.values(), 0)
    if most is not None and rank > most:
        raise SpecError(
            f"adapter '{name}' has rank {rank} as a plain LoRA, and vLLM was started for at most {most}; "
            f"start it with `--max-lora-rank {rank}` or more."
        )


def _write(name: str, adapter: SavedAdapter, folder: Path) -> None:
    """Write an adapter as plain LoRA into an empty folder, with the scale of its labels in its head.

    Raises:
        NotExactError: If no plain LoRA equals it, or its head cannot hold the scale.
    """
    config = peft_config(adapter)
    if isinstance(config, RankfoldConfig):
        unit = fold_label_scale(RankfoldAdapter(adapter, config), None, "vLLM has the model", torch.float32)
        _check_unit(name, unit.note)
        write_plain_lora(config, unit.adapter.saved.tensors, folder)
    elif config.peft_type == PeftType.LORA:
        manifest = adapter.manifest
        if manifest is not None and manifest.task is not None and manifest.task.kind in kind_names():
            _check_unit(name, find_kind(manifest.task.kind).output_note(manifest.task.settings))
        adapter.write(folder)
    else:
        raise NotExactError(
            f"adapter '{name}' is no LoRA and of no method of rankfold; merge it into its base model."
        )


def _check_unit(name: str, note: str | None) -> None:
    """Check that nothing is left to compute from the outputs.

    Raises:
        NotExactError: If there is, as a note says.
    """
    if note is not None:
        raise NotExactError(f"vLLM cannot answer by adapter '{name}' in the unit of its labels: {note}")
