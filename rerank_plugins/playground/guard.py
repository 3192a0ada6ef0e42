"""What stands before Gradio: requests that the page does not make do not come through."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES: Final = 16_000_000
"""Longest body of a request: the files that the page takes, and what packing adds to them."""

_JOIN: Final = "/gradio_api/queue/join"

_OPEN: Final = frozenset(
    {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
    | {_JOIN, "/gradio_api/queue/data", "/gradio_api/startup-events"}
)
_OPEN_BELOW: Final = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
"""What the page asks for. Gradio serves more: files by path, uploads, proxies, other calls."""

_POLICY: Final = (
    "default-src 'self'; "
    # Gradio's page starts itself with inline scripts, and compiles its templates.
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""What a browser may load for the page: nothing from anywhere else, whatever the page says."""

_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class _RefusedError(Exception):
    """A request does not come through: its status code, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Guard:
    """Lets the page's own requests through to *app*, and adds headers to each answer.

    *hosts* are the names by which the page may be asked for, None for any. A foreign page can point
    a name of its own at this machine, and its browser would then take what is served here for that
    page's own; the name in the request gives it away.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            # Gradio's page speaks no other; what is left is the server's own start and end.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            receive = await self._checked(scope, receive)
        except _RefusedError as refusal:
            from starlette.responses import PlainTextResponse

            answer = PlainTextResponse(str(refusal), status_code=refusal.status)
            await answer(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Return what gives the request's body again, once it was read and found to be the page's.

        Raises:
            _RefusedError: the page does not ask for this, or not so.
        """
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").lower()
        if self._hosts is not None and _name_of(host) not in self._hosts:
            raise _RefusedError(421, "this page is not served by that name")
        path = scope["path"]
        if path not in _OPEN and not path.startswith(_OPEN_BELOW):
            raise _RefusedError(404, "not found")
        if scope["method"] in ("GET", "HEAD"):
            return receive
        if scope["method"] != "POST" or path != _JOIN:
            raise _RefusedError(405, "the page does not ask so")
        if _origin_of(headers.get(b"origin", f"//{host}")) != host:
            raise _RefusedError(403, "asked by another page")
        body = await _body(receive)
        _check_plain(body)
        return _again(body, receive)


def _name_of(host: str) -> str:
    """Return the host of a Host header, without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _origin_of(address: str) -> str | None:
    """Return host and port of an Origin header, None where it cannot be read."""
    try:
        return urlsplit(address).netloc.lower()
    except ValueError:
        return None


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _RefusedError(400, "the request ended early")
        body += message.get("body", b"")
        if len(body) > MOST_BODY_BYTES:
            raise _RefusedError(413, "more than this page takes")
        if not message.get("more_body", False):
            return bytes(body)


def _check_plain(body: bytes) -> None:
    """See that what is asked is plain values.

    Gradio takes an object in any of them for a file, and copies what its path or address names.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    values = asked.pop("data", None) if isinstance(asked, dict) else None
    # Numbers name the function; what is asked of it is typed, ticked or blank.
    plain = (
        isinstance(values, list)
        and all(value is None or isinstance(value, str | bool) for value in values)
        and not any(isinstance(value, dict | list) for value in asked.values())
    )
    if not plain:
        raise _RefusedError(400, "not what this page asks")


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a receiver that gives *body*, and then whatever comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
