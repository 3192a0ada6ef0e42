"""The web server of ``serve``: uvicorn, on a socket of ours, ended by a signal with exit code 0."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

from rerank_plugins.cli.output import flush, print_line
from rerank_plugins.errors import ConfigError, MissingExtraError
from rerank_plugins.service.app import create_app

try:
    import uvicorn
except ModuleNotFoundError as exc:
    if exc.name != "uvicorn":
        raise
    raise MissingExtraError(
        package="uvicorn", extra="service", needed_for="rerank-plugins serve"
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

    from rerank_plugins.reranker import Reranker
    from rerank_plugins.service.settings import ServiceSettings
    from rerank_plugins.service.state import Service

KEEP_ALIVE_S = 75
"""Longer than load balancers keep an idle connection: they hang up first, not in mid-request."""


def listen(host: str, port: int) -> socket.socket:
    """Take the address before a model is loaded; nobody can connect yet.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError(f"--host, --port: cannot listen on {host}:{port}: {reason}") from None
    return found


def serve(
    models: Mapping[str, Reranker],
    settings: ServiceSettings,
    sock: socket.socket,
    *,
    drain_s: int,
) -> None:
    """Serve until a signal comes, then let requests end for *drain_s* seconds at most."""
    app = create_app(models, settings)
    config = uvicorn.Config(
        app,
        # Logging is set up already; the access log is the application's own.
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        # The client's address is used for nothing.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )
    DrainingServer(config, app.state.service, _where(sock)).run(sockets=[sock])


def _where(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which would end by the signal that it was told to end with."""

    def __init__(self, config: uvicorn.Config, service: Service, where: str) -> None:
        super().__init__(config)
        self._service = service
        self._where = where

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it listens, once it does."""
        try:
            await super().startup(sockets)
        except OSError as exc:
            # Another process took the address while models were loaded: only one can listen.
            reason = exc.strerror or exc
            raise ConfigError(f"--port: cannot listen on {self._where}: {reason}") from None
        if self.started:
            print_line(f"serving {', '.join(self._service.models)} on {self._where}")
            flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Refuse what comes now, end when the rest is answered; a second Ctrl-C ends at once."""
        self._service.drain()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
