"""What every request passes on its way in and out: id, key, room, log, metrics."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from rerank_plugins.service.access import (
    CLIENT_GONE,
    REQUEST_ID,
    Access,
    remember,
    request_id,
)
from rerank_plugins.service.answering import refusal
from rerank_plugins.service.dialects.paths import PATHS, PREFIXES, dialect_at
from rerank_plugins.service.problems import Kind, Problem, closing, retry_after

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from rerank_plugins.service.state import Service

_HEALTH: Final = ("/health", "/ready", "/v1/health/live", "/v1/health/ready")

OPEN: Final = frozenset(
    prefix + path for prefix in ("", *(f"/{name}" for name in PREFIXES)) for path in _HEALTH
)
"""Paths that want no key and are answered until the end."""

_QUIET: Final = OPEN | {"/metrics"}
_NO_KEY: Final = Problem(
    Kind.UNAUTHORIZED,
    "a key is needed: Authorization: Bearer KEY",
    headers={"www-authenticate": "Bearer"},
)


class Gate:
    """The outermost layer of a service, in plain ASGI: it costs microseconds."""

    def __init__(self, app: ASGIApp, service: Service, known: Collection[str]) -> None:
        self._app = app
        self._service = service
        self._known = frozenset(known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        asked = scope["path"].removeprefix(scope.get("root_path", ""))
        path = asked if asked in self._known else "other"
        access = Access(
            request_id(scope["headers"]), scope["method"], path, asked, dialect_at(asked).name
        )
        remember(scope, access)
        metrics = self._service.metrics
        metrics.in_flight.inc()
        try:
            await self._pass(scope, receive, _named(send, access), access)
        except Exception as exc:
            # The outermost layer answers for it.
            access.status, access.error = 500, type(exc).__name__
            raise
        finally:
            metrics.in_flight.dec()
            access.seconds = time.perf_counter() - started
            # Nothing was sent to a client that is gone, or whose server stopped waiting.
            access.status = access.status or CLIENT_GONE
            metrics.count(access)
            # Whoever asks every second how it goes would fill the log.
            access.log(logging.DEBUG if path in _QUIET else logging.INFO)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, access: Access) -> None:
        service, path = self._service, access.path
        problem = self._refused(scope, path)
        if problem is not None:
            access.error = problem.kind.value
            await refusal(dialect_at(access.asked_path), problem)(scope, receive, send)
            return
        if path not in PATHS:
            await self._app(scope, receive, send)
            return
        service.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            service.in_flight -= 1
            service.body_bytes -= access.body_bytes

    def _refused(self, scope: Scope, path: str) -> Problem | None:
        service = self._service
        if path in OPEN:
            return None
        if not service.keys.admit(scope["headers"]):
            return _NO_KEY
        if path not in PATHS:
            return None
        if service.draining:
            problem = closing()
            return Problem(
                problem.kind,
                problem.message,
                headers={**(problem.headers or {}), "connection": "close"},
            )
        if service.in_flight >= service.settings.max_requests:
            return Problem(
                Kind.OVERLOADED,
                f"{service.settings.max_requests} requests are being answered; try again later",
                headers=retry_after(1),
            )
        return None


def _named(send: Send, access: Access) -> Send:
    """Return *send* that puts the request's id on the answer and notes its status."""
    header = REQUEST_ID, access.id.encode("ascii")

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            access.status = message["status"]
            message = {**message, "headers": [*message["headers"], header]}
            if access.status == CLIENT_GONE:
                return
        elif access.status == CLIENT_GONE:
            return
        await send(message)

    return named
