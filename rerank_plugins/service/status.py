"""What a service says of itself: alive, ready, its models, its limits, its metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import Response

from rerank_plugins.service.dialects.paths import PREFIXES
from rerank_plugins.service.gate import OPEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from rerank_plugins.service.state import Service

MODEL_PATHS: Final = (
    "/v1/models", "/models",
    *(f"/{name}/v1/models" for name in PREFIXES),
    *(f"/{name}/models" for name in PREFIXES),
)  # fmt: skip
INFO_PATHS: Final = ("/info", "/tei/info")


class Health(BaseModel):
    """Whether a service is there."""

    status: str


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: str
    created: int
    owned_by: str
    capabilities: list[str]


class ModelList(BaseModel):
    """The models that are served, the default first."""

    object: str
    data: list[Model]


class Info(BaseModel):
    """The default model and the limits, by the names that Text Embeddings Inference has."""

    model_id: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_client_batch_size: int
    max_input_length: int | None
    auto_truncate: bool
    version: str
    models: list[str]
    max_body_bytes: int
    max_characters: int


def add_status_routes(app: FastAPI, service: Service, version: str) -> list[str]:
    """Add the routes, each under all names that clients know; returns their paths."""
    known: list[str] = []

    def add(paths: tuple[str, ...], shown: str, route: Callable[..., Any], **what: Any) -> None:  # noqa: ANN401
        for path in paths:
            app.add_api_route(path, route, methods=["GET"], include_in_schema=path == shown, **what)
            known.append(path)

    live = tuple(sorted(path for path in OPEN if path.endswith(("/health", "/live"))))
    ready = tuple(sorted(path for path in OPEN if path.endswith("/ready")))
    no_key: dict[str, Any] = {"tags": ["status"]}
    add(live, "/health", _health, summary="Whether it runs", response_model=Health, **no_key)
    add(
        ready,
        "/ready",
        _ready(service),
        summary="Whether it takes requests",
        responses={200: {"model": Health}, 503: {"model": Health}},
        **no_key,
    )
    keyed: dict[str, Any] = {
        "tags": ["status"],
        "responses": {401: {"description": "A key is needed"}},
    }
    add(
        MODEL_PATHS,
        "/v1/models",
        _models(service),
        summary="The models that are served",
        response_model=ModelList,
        **keyed,
    )
    add(
        INFO_PATHS,
        "/info",
        _info(service, version),
        summary="The default model and the limits",
        response_model=Info,
        **keyed,
    )
    add(
        ("/metrics",),
        "/metrics",
        _metrics(service),
        summary="Prometheus metrics",
        response_class=Response,
        **{**keyed, "responses": {200: {"content": {"text/plain": {}}}, **keyed["responses"]}},
    )
    return known


async def _health() -> Health:
    return Health(status="ok")


def _ready(service: Service) -> Callable[..., Any]:
    async def ready() -> JSONResponse:
        if service.ready:
            return JSONResponse({"status": "ready"})
        status = "draining" if service.draining else "loading"
        return JSONResponse({"status": status}, 503, {"retry-after": "1"})

    return ready


def _models(service: Service) -> Callable[..., Any]:
    async def models() -> ModelList:
        return ModelList(
            object="list",
            data=[
                Model(
                    id=name,
                    object="model",
                    created=service.created,
                    owned_by="rerank-plugins",
                    capabilities=["rerank"],
                )
                for name in service.models
            ],
        )

    return models


def _info(service: Service, version: str) -> Callable[..., Any]:
    async def info() -> Info:
        settings = service.settings
        name, reranker = service.models.find(None)
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return Info(
            model_id=name,
            model_type={"reranker": labels},
            max_concurrent_requests=settings.max_requests,
            max_client_batch_size=settings.max_documents,
            max_input_length=reranker.config.max_length,
            auto_truncate=True,
            version=version,
            models=list(service.models),
            max_body_bytes=settings.max_body_bytes,
            max_characters=settings.max_characters,
        )

    return info


def _metrics(service: Service) -> Callable[..., Any]:
    # In a thread: gauges of GPUs are read when they are asked for.
    def metrics() -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    return metrics
