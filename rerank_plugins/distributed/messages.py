"""An HTTP request and its answer as values that travel between Ray's processes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Scope

_OF_A_HOP = frozenset({b"connection", b"content-length", b"keep-alive", b"transfer-encoding"})
"""Headers that speak of one connection, and not of what is sent."""

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, read whole; ``path`` begins with ``root_path``."""

    method: str
    path: str
    root_path: str
    query_string: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer, written whole."""

    status: int
    headers: Headers
    body: bytes


async def read_request(request: Request, limit: int) -> HttpRequest:
    """Read a request, and of its body not much more than *limit* bytes.

    One that is longer is cut there, and still longer than what the service takes: it refuses it in
    the words of its dialect.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            break
    scope = request.scope
    headers = [(n.lower(), v) for n, v in scope["headers"] if n.lower() not in _OF_A_HOP]
    sent = bytes(body[: limit + 1])
    headers.append((b"content-length", str(len(sent)).encode()))
    return HttpRequest(
        request.method,
        scope["path"],
        scope.get("root_path", ""),
        scope.get("query_string", b""),
        tuple(headers),
        sent,
    )


async def answer_by(app: ASGIApp, request: HttpRequest) -> HttpAnswer:
    """Return what an ASGI application answers."""
    status, headers = 500, Headers()
    body = bytearray()
    unread = [request.body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        # The client is there until this call is cancelled.
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], tuple(map(tuple, message.get("headers", ())))
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    await app(_scope_of(request), receive, send)
    kept = tuple((name, value) for name, value in headers if name.lower() not in _OF_A_HOP)
    return HttpAnswer(status, kept, bytes(body))


def _scope_of(request: HttpRequest) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": request.root_path,
        "query_string": request.query_string,
        "headers": list(request.headers),
        "client": None,
        "server": None,
    }
