"""Serving the page: to this machine's browsers alone, unless another host is named."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import ConfigError
from rerank_plugins.playground.guard import Guard
from rerank_plugins.playground.page import CSS, THEME, build_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

    from rerank_plugins.playground.asking import Playground

_GRACE_S: Final = 5


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address, is this machine and can be reached from no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
    except OSError as exc:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({exc.strerror or exc}); choose others with --host "
            "and --port"
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
