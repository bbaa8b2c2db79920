"""Endpoints that put adapters into the store of a running server, and delete them."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any, final

from fastapi import Depends, FastAPI, Query, Request

from rankfold.errors import AdapterFileError, SpecError
from rankfold.files import naming_full_disk
from rankfold.serve.engine import Engine
from rankfold.serve.http.messages import AdapterInfo
from rankfold.serve.http.service import MOST_MODELS, HttpError, ModelName, Service, missing_model
from rankfold.store.adapter import SavedAdapter
from rankfold.store.record import Record
from rankfold.store.saved import open_adapter
from rankfold.store.store import AdapterStore


@final
class _Adapters:
    """The adapters of a server's store.

    Args:
        engine: Serves them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self, after: str, limit: int) -> list[AdapterInfo]:
        """Return adapters in the order of their names."""
        page = self._engine.bank.page(after=after, limit=limit)
        return [_info(listed.record) for listed in page if listed.record is not None]

    def find(self, name: str) -> AdapterInfo:
        """Return one adapter.

        Raises:
            HttpError: If there is none of this name.
        """
        listed = self._engine.bank.page([name], limit=1) if "*" not in name else []
        if not listed or listed[0].record is None:
            raise missing_model(name)
        return _info(listed[0].record)

    def put(self, name: str, packed: bytes) -> AdapterInfo:
        """Store an adapter that can be served, in place of an earlier one.

        Raises:
            HttpError: If something that is not in the store has its name, or it cannot be served.
            DiskError: If a disk is full; the earlier adapter stays.
        """
        if self._is_hidden(name):
            raise HttpError(
                409,
                f"'{name}' names the model or an adapter outside the store; choose another.",
                "name_taken",
            )
        with (
            naming_full_disk(Path("the body")),
            tempfile.TemporaryDirectory() as folder,
            self._open() as store,
        ):
            file = Path(folder) / "adapter.rankfold"
            _ = file.write_bytes(packed)
            saved = self._read(file)
            return _info(store.put(name, saved, replace=True))

    def _is_hidden(self, name: str) -> bool:
        others = self._engine.bank.page([name], limit=1) if "*" not in name else []
        return name == self._engine.name or any(listed.record is None for listed in others)

    def _read(self, file: Path) -> SavedAdapter:
        try:
            saved = open_adapter(file)
            self._engine.bank.check(saved)
        except (AdapterFileError, SpecError) as error:
            message = str(error).replace(f"'{file}'", "the body")  # whose file here is nobody's business
            raise HttpError(422, message, "adapter_unusable") from error
        return saved

    def remove(self, name: str) -> None:
        """Delete an adapter.

        Raises:
            HttpError: If there is none of this name.
        """
        with self._open() as store:
            _ = self.find(name)
            store.delete(name)

    def _open(self) -> AdapterStore:
        if self._engine.store is None:
            raise HttpError(409, "this server has no store; start it with --store.", "no_store")
        return AdapterStore(self._engine.store, "write")


def _info(record: Record) -> AdapterInfo:
    return AdapterInfo(
        name=record.name,
        base=record.base or None,
        method=record.method,
        bytes=record.bytes,
        created=record.created,
        digest=record.digest,
    )


def add_admin(app: FastAPI, service: Service) -> None:
    """Add the endpoints to an application."""
    adapters, admin, path = _Adapters(service.engine), [Depends(service.admin)], "/admin/adapters/{name:path}"

    @app.get("/admin/adapters", dependencies=admin)
    async def adapter_page(  # pyright: ignore[reportUnusedFunction]
        limit: Annotated[int, Query(ge=1, le=MOST_MODELS)] = 1000,
        after: Annotated[str, Query(max_length=255)] = "",
    ) -> list[AdapterInfo]:
        """List the adapters of the store by name; `after` begins the next page."""
        return await asyncio.to_thread(adapters.page, after, limit)

    @app.get(path, dependencies=admin)
    async def adapter_info(name: ModelName) -> AdapterInfo:  # pyright: ignore[reportUnusedFunction]
        """Return the record of an adapter."""
        return await asyncio.to_thread(adapters.find, name)

    @app.put(path, dependencies=admin, openapi_extra=_BYTES)
    async def put_adapter(name: ModelName, request: Request) -> AdapterInfo:  # pyright: ignore[reportUnusedFunction]
        """Put an adapter, the bytes of a file that `rankfold pack` wrote, in place of an earlier one."""
        return await asyncio.to_thread(adapters.put, name, await request.body())

    @app.delete(path, dependencies=admin, status_code=204)
    async def delete_adapter(name: ModelName) -> None:  # pyright: ignore[reportUnusedFunction]
        """Delete an adapter; requests that run keep it until they are answered."""
        await asyncio.to_thread(adapters.remove, name)


_BYTES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
