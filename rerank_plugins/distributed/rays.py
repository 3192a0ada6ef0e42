"""Ray: imported where it is used, joined or started, and what it says of failures."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from rerank_plugins.errors import MissingExtraError, ScoringError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

FIND_WAIT_S: Final = 10.0
"""How long a cluster may take to pick up: Ray itself tries for minutes."""


def import_ray(part: str) -> Any:  # noqa: ANN401  its types are half there, and slow to read
    """Return Ray with its library *part* loaded: "data" or "serve".

    Raises:
        MissingExtraError: it is not installed, or not with that library.
    """
    try:
        ray = import_module("ray")
        import_module(f"ray.{part}")
    except ImportError as exc:
        raise MissingExtraError(
            package=f"ray[{part}]", extra="ray", needed_for="rerank_plugins.distributed"
        ) from exc
    return ray


@contextmanager
def running(ray: Any, address: str | None) -> Iterator[None]:  # noqa: ANN401
    """Use the Ray that this process is in, or join the cluster at *address*, or start one here.

    What was joined or started is left again.

    Raises:
        ScoringError: there is no cluster at *address*; or something in it failed.
    """
    begun = not ray.is_initialized()
    try:
        if begun:
            if address is not None:
                _find(address)
            ray.init(address=address, logging_level="WARNING")
        yield
    except (ConnectionError, ray.exceptions.RayError) as exc:
        raise ScoringError(f"Ray: {first_line(exc)}", retryable=True) from exc
    finally:
        if begun:
            ray.shutdown()


def _find(address: str) -> None:
    """Raise `ConnectionError` where nothing listens at a host and port; other words are Ray's."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), FIND_WAIT_S).close()
    except (OSError, OverflowError) as exc:
        raise ConnectionError(f"no cluster at {address} ({first_line(exc)})") from None
