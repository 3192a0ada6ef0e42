"""What runs in Ray Serve's processes: replicas with models, and the door before them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from rerank_plugins.config import RerankConfig, service_api_keys
from rerank_plugins.distributed.messages import (
    HttpAnswer,
    HttpRequest,
    answer_by,
    read_request,
)
from rerank_plugins.errors import ConfigError
from rerank_plugins.reranker import Reranker
from rerank_plugins.service.access import CLIENT_GONE
from rerank_plugins.service.answering import refusal
from rerank_plugins.service.app import create_app
from rerank_plugins.service.dialects.paths import dialect_at
from rerank_plugins.service.problems import Kind, Problem, retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.types import Scope

    from rerank_plugins.service.dialects.dialect import Dialect
    from rerank_plugins.service.settings import ServiceSettings

TRIES: Final = 3
"""A request whose replica dies is sent to another; one that kills each of them ends here."""

_logger = logging.getLogger(__name__)


class ModelReplica:
    """The whole service in one process: its models and its application, which nobody listens for.

    Raises:
        ConfigError: the service was built with keys, and this process has none.
        ModelLoadError, MissingExtraError: a model cannot be opened.
    """

    def __init__(
        self,
        models: Mapping[str, RerankConfig] | RerankConfig,
        settings: ServiceSettings,
        *,
        keys: bool,
    ) -> None:
        own_keys = service_api_keys()
        if keys and not own_keys:
            # A service that somebody wanted closed must not come up open.
            raise ConfigError(
                "the service has keys where it was built, and none here: set "
                "RERANK_PLUGINS_SERVICE_API_KEYS on every node, or in Ray's runtime_env"
            )
        opened: Mapping[str, Reranker] | Reranker
        if isinstance(models, RerankConfig):
            opened = Reranker.from_config(models)
        else:
            opened = {name: Reranker.from_config(config) for name, config in models.items()}
        self._app = create_app(opened, replace(settings, api_keys=own_keys))
        self._opening = asyncio.Lock()

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Answer one request."""
        await self._open()
        return await answer_by(self._app, request)

    async def check_health(self) -> None:
        """Open the models at the first time; Ray replaces the replica where this raises."""
        await self._open()

    async def _open(self) -> None:
        service = self._app.state.service
        if not service.ready:
            async with self._opening:
                if not service.ready:
                    await service.open()


class Door:
    """Takes requests in and hands them to a replica; to another one where that dies.

    It holds no model: what may use up memory or crash happens elsewhere. Ranking the same twice
    changes nothing, so every request may be sent again.
    """

    def __init__(self, models: Any, settings: ServiceSettings) -> None:  # noqa: ANN401  a handle
        from ray import exceptions
        from ray.serve.exceptions import BackPressureError

        self._models = models
        self._settings = settings
        self._lost = (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.ObjectLostError,
        )
        self._full = BackPressureError

    async def __call__(self, request: Request) -> Response:
        """Answer one request of a client."""
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                asked = await read_request(request, self._settings.max_body_bytes)
        except TimeoutError:
            message = f"the body did not come within {self._settings.body_timeout_s:g} seconds"
            return refusal(_dialect(request.scope), Problem(Kind.SLOW, message))
        except ClientDisconnect:
            # Nobody reads it; an error would be in Ray's log with a stack.
            return Response(status_code=CLIENT_GONE)
        try:
            answer = await self._ask(asked)
        except self._full:
            return _refused(request, Kind.OVERLOADED, "too many requests wait; try again later")
        except self._lost:
            return _refused(request, Kind.UNAVAILABLE, f"{TRIES} replicas died over the request")
        response = Response(answer.body, answer.status)
        # As the application wrote them; Starlette has added the length.
        response.raw_headers += list(answer.headers)
        return response

    async def _ask(self, request: HttpRequest) -> HttpAnswer:
        for left in reversed(range(TRIES)):
            try:
                answer: HttpAnswer = await self._models.answer.remote(request)
            except self._lost as exc:
                if not left:
                    raise
                _logger.warning("a replica died, the request goes on: %s", type(exc).__name__)
            else:
                return answer
        raise AssertionError("the last try returns or raises")


def _refused(request: Request, kind: Kind, message: str) -> Response:
    return refusal(_dialect(request.scope), Problem(kind, message, headers=retry_after(1)))


def _dialect(scope: Scope) -> Dialect:
    return dialect_at(scope["path"].removeprefix(scope.get("root_path", "")))
