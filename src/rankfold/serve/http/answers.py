"""Endpoints that list models, embed texts and classify them."""

import asyncio
import base64
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import Response

from rankfold.serve.engine import CLASSIFY, EMBED, Row
from rankfold.serve.http.keys import ApiKey
from rankfold.serve.http.messages import (
    ClassifyAnswer,
    ClassifyRequest,
    Embedding,
    EmbeddingAnswer,
    EmbeddingRequest,
    ModelCard,
    ModelList,
    inputs_of,
)
from rankfold.serve.http.service import MOST_MODELS, ModelName, Service, dump, missing_model, usage_of
from rankfold.serve.library import ListedAdapter


def add_models(app: FastAPI, service: Service) -> None:
    """Add the endpoints that list models to an application."""
    engine, key_of = service.engine, Depends(service.key)

    def base_card() -> ModelCard:
        return ModelCard(id=engine.name, created=service.started)

    def card(listed: ListedAdapter) -> ModelCard:
        record = listed.record
        created = (
            service.started if record is None else int(datetime.fromisoformat(record.created).timestamp())
        )
        return ModelCard(id=listed.name, created=created, parent=engine.name, method=listed.method)

    @app.get("/v1/models", responses={200: {"model": ModelList}})
    async def models(  # pyright: ignore[reportUnusedFunction]
        key: Annotated[ApiKey, key_of],
        limit: Annotated[int, Query(ge=1, le=MOST_MODELS)] = 1000,
        after: Annotated[str, Query(max_length=255)] = "",
    ) -> ModelList:
        """List the model and all adapters that the key may use, by name; `after` begins the next page."""
        base = [base_card()] if not after and key.may_use(engine.name) else []
        start = "" if after == engine.name else after
        listed = await asyncio.to_thread(engine.bank.page, key.adapters, after=start, limit=limit + 1)
        cards = base + [card(adapter) for adapter in listed if adapter.name != engine.name]
        page = cards[:limit]
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        return ModelList(data=page, first_id=first, last_id=last, has_more=len(cards) > limit)

    @app.get("/v1/models/{model:path}", responses={200: {"model": ModelCard}})
    async def model_info(model: ModelName, key: Annotated[ApiKey, key_of]) -> ModelCard:  # pyright: ignore[reportUnusedFunction]
        """Return one model or adapter."""
        if key.may_use(model):
            if model == engine.name:
                return base_card()
            listed = [] if "*" in model else await asyncio.to_thread(engine.bank.page, [model], limit=1)
            if listed:
                return card(listed[0])
        raise missing_model(model)


def add_answers(app: FastAPI, service: Service) -> None:
    """Add the endpoints that embed and classify texts to an application."""
    engine, key_of = service.engine, Depends(service.key)

    @app.post("/v1/embeddings", responses={200: {"model": EmbeddingAnswer}})
    async def embeddings(  # pyright: ignore[reportUnusedFunction]
        body: EmbeddingRequest, request: Request, key: Annotated[ApiKey, key_of]
    ) -> Response:
        """Return the embedding of each text, of length 1."""
        inputs, tokens = inputs_of(body.input), 0

        def make(adapter: str | None) -> Sequence[Row]:
            nonlocal tokens
            rows = engine.embedding_rows(inputs, adapter)
            tokens = sum(length for _, _, length in rows)
            return rows

        ticket = await service.submit(request, key, EMBED, body.model, make)
        vectors = await service.answers(request, ticket, body.model)
        data = [
            Embedding(index=index, embedding=_spell(vector, body.encoding_format))
            for index, vector in enumerate(vectors)
        ]
        return dump(EmbeddingAnswer(model=body.model, data=data, usage=usage_of(tokens)))

    @app.post("/v1/classify", responses={200: {"model": ClassifyAnswer}})
    async def classify(  # pyright: ignore[reportUnusedFunction]
        body: ClassifyRequest, request: Request, key: Annotated[ApiKey, key_of]
    ) -> Response:
        """Return the answer to each text by the task that the adapter has learned, as `rankfold predict`."""
        items = [body.input] if isinstance(body.input, str) else body.input
        texts = [(item[0], item[1]) if isinstance(item, list) else item for item in items]
        ticket = await service.submit(
            request, key, CLASSIFY, body.model, lambda adapter: engine.classification_rows(texts, adapter)
        )
        answers = await service.answers(request, ticket, body.model)
        return dump(ClassifyAnswer(model=body.model, data=answers))


def _spell(vector: Sequence[float], encoding: str) -> list[float] | str:
    """Return a vector as numbers, or as little-endian single precision in base64."""
    if encoding == "float":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
