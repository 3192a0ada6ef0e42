"""Serving the page: to this machine's browsers alone, unless another host is named."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import ConfigError
from rerank_plugins.playground.page import CSS, MOST_UPLOADED, THEME, build_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from rerank_plugins.playground.asking import Playground

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

_GRACE_S: Final = 5


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address, is this machine and can be reached from no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets in requests to *hosts* alone, where they are given, and adds headers to each answer.

    A foreign page can point a name of its own at this machine, and its browser would then take
    what is served here for that page's own; the name in the request gives it away.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request by its Host header, or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        if self._hosts is not None and _host_of(scope) not in self._hosts:
            from starlette.responses import PlainTextResponse

            refused = PlainTextResponse("unknown host", status_code=421)
            await refused(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def _host_of(scope: Scope) -> str:
    """Return the host that a request names, without its port."""
    for name, value in scope["headers"]:
        if name == b"host":
            host: str = value.decode("latin-1").lower()
            if host.startswith("["):
                return host[1:].partition("]")[0]
            return host.partition(":")[0]
    return ""


def app_of(playground: Playground, host: str) -> ASGIApp:
    """Return the page of an open playground as an application to be served at *host*."""
    # Gradio brings these along; whether it is there, the page's module has found out.
    import gradio as gr
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        build_page(playground),
        path="/",
        theme=THEME,
        css=CSS,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MOST_UPLOADED,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    hosts = frozenset({"127.0.0.1", "localhost", "::1", host}) if is_loopback(host) else None
    return Guard(app, hosts)


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Take a port before anything is loaded; 0 is any that is free.

    Raises:
        ConfigError: the port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        taken = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(
            f"cannot listen on {host}:{port} ({reason}); choose others with --host and --port"
        ) from None
    with taken:
        yield taken


def url_of(taken: socket.socket) -> str:
    """Return where a browser finds what is served on a socket."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(playground: Playground, host: str, taken: socket.socket) -> None:
    """Serve the page on a socket until the process is told to stop."""
    import uvicorn

    config = uvicorn.Config(
        app_of(playground, host),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run(sockets=[taken])
