"""`create_app`: rerankers as a web application, for a server of yours or for ``serve``."""

from __future__ import annotations

import weakref
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import MissingExtraError

try:
    from fastapi import FastAPI  # noqa: TC002  what is missing is told by name
    from starlette.exceptions import HTTPException

    # FastAPI reads the annotations of its routes.
    from starlette.requests import Request  # noqa: TC002
    from starlette.responses import Response  # noqa: TC002
except ModuleNotFoundError as exc:
    if exc.name not in ("fastapi", "starlette"):
        raise
    raise MissingExtraError(
        package="fastapi", extra="service", needed_for="rerank_plugins.service"
    ) from exc

from prometheus_client import REGISTRY, CollectorRegistry

from rerank_plugins.reranker import Reranker
from rerank_plugins.service.access import access_of
from rerank_plugins.service.answering import answer, refusal
from rerank_plugins.service.dialects.paths import PATHS, dialect_at
from rerank_plugins.service.gate import Gate
from rerank_plugins.service.models import public_name
from rerank_plugins.service.openapi import ServiceApp, request_body, responses
from rerank_plugins.service.problems import Kind, Problem
from rerank_plugins.service.settings import ServiceSettings
from rerank_plugins.service.state import Service
from rerank_plugins.service.status import add_status_routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from rerank_plugins.service.dialects.dialect import AnyEndpoint

_DESCRIPTION = """\
Rerank documents in the dialect of your client. A prefix pins a dialect (`/tei`, `/infinity`,
`/jina`, `/cohere`, `/vllm`, `/nim`); bare paths serve the commonest. Fields that a dialect does not
know are ignored.
"""


def create_app(
    models: Mapping[str, Reranker] | Reranker,
    settings: ServiceSettings | None = None,
    *,
    registry: CollectorRegistry | None = None,
) -> FastAPI:
    """Return an application that serves *models* by their names, the first as the default.

    One reranker is served by the name of its model. The application owns the rerankers: it opens
    them when it starts and closes them when it ends. ``/metrics`` shows *registry*, the process's
    own where not set; give the rerankers a `PrometheusObserver` of the same for the engine's
    metrics. ``app.state.service`` is the `Service`.

    Raises:
        ConfigError: there is no model, or a name is blank.
        MissingExtraError: FastAPI is not installed.
    """
    served = {public_name(models.config.model): models} if isinstance(models, Reranker) else models
    service = Service(served, settings or ServiceSettings(), registry or REGISTRY)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await service.open()
            yield
        finally:
            await service.close()

    release = version("rerank-plugins")
    app = ServiceApp(
        title="rerank-plugins",
        version=release,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        # Clients follow no redirect of a POST.
        redirect_slashes=False,
    )
    app.state.service = service
    # FastAPI remembers functions of routes for good; models must not live as long.
    routed = weakref.proxy(service)
    known = add_status_routes(app, routed, release)
    for path, endpoints in PATHS.items():
        _add_route(app, routed, path, endpoints)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_middleware(Gate, service=service, known=(*known, *PATHS))
    return app


def _add_route(
    app: FastAPI, service: Service, path: str, endpoints: tuple[AnyEndpoint, ...]
) -> None:
    app.add_api_route(
        path,
        _route(service, endpoints),
        methods=["POST"],
        response_model=None,
        responses=responses(endpoints),
        summary=endpoints[0].summary,
        operation_id=path.strip("/").replace("/", "_"),
        tags=[endpoints[0].dialect.name],
        openapi_extra={"requestBody": request_body(endpoints)},
    )


def _route(
    service: Service, endpoints: tuple[AnyEndpoint, ...]
) -> Callable[[Request], Awaitable[Response]]:
    async def rerank(request: Request) -> Response:
        return await answer(service, endpoints, request)

    return rerank


async def _refuse(request: Request, exc: Any) -> Response:  # noqa: ANN401  as Starlette has it
    """Answer what no route takes, in the form of the dialect whose path it is."""
    access = access_of(request.scope)
    kinds = {404: Kind.NOT_FOUND, 405: Kind.METHOD}
    kind = kinds.get(exc.status_code, Kind.MALFORMED)
    messages = {
        Kind.NOT_FOUND: "there is no such path; /docs lists those there are",
        Kind.METHOD: f"{request.method} is not taken here",
    }
    message = messages.get(kind, "the request cannot be read")
    access.error = kind.value
    return refusal(dialect_at(access.asked_path), Problem(kind, message, headers=exc.headers))
