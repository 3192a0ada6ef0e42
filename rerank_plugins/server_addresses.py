"""Addresses of servers, where a model's name is one or several of them."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCHEMES: Final = ("http://", "https://")

_ENDPOINTS: Final = ("rerank", "ranking", "score")
"""What the path of an endpoint ends with; an address is what comes before it."""


def is_remote(model: str) -> bool:
    """Whether *model* is the address of a server, or several of them with commas between."""
    return model.strip().lower().startswith(_SCHEMES)


def addresses_of(model: str) -> tuple[str, ...]:
    """Return the addresses that *model* lists, without the slashes that they end with."""
    return tuple(part.strip().rstrip("/") for part in model.split(","))


def check_addresses(models: Iterable[str]) -> None:
    """Check those of *models* that are addresses.

    Raises:
        ValueError: one is none, or holds what belongs elsewhere; a password in it is not repeated.
    """
    for model in models:
        if not is_remote(model):
            continue
        addresses = addresses_of(model)
        for address in addresses:
            _check(address)
        if len(set(addresses)) < len(addresses):
            raise ValueError("an address of the model stands twice")


def is_plain(address: str) -> bool:
    """Whether what is sent to *address* is not encrypted."""
    return urlsplit(address).scheme == "http"


def is_loopback(address: str) -> bool:
    """Whether *address* is one of this machine, that nothing sent to leaves it."""
    host = urlsplit(address).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(address: str) -> None:
    if not is_remote(address):
        raise ValueError(
            f"where a model is an address, all of its list are: expected http://HOST:PORT, got "
            f"{address!r}"
        )
    parts = _split(address)
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "an address of the model holds a user or password, which would get into logs; leave "
            "it out, and hand a token over as api_key"
        )
    if any(letter.isspace() or not letter.isprintable() for letter in address):
        raise ValueError(
            f"an address of the model holds a blank or a letter that cannot be seen: {address!r}"
        )
    if parts.query or parts.fragment or "?" in address or "#" in address:
        raise ValueError(
            'an address of the model goes on after its path, with "?" or "#"; leave that out, and '
            "hand a token over as api_key"
        )
    if not parts.hostname:
        raise ValueError(f"an address of the model names no host: {address!r}")
    if parts.path.rpartition("/")[2] in _ENDPOINTS:
        raise ValueError(
            f"an address of the model is that of an endpoint: {address!r}; leave out its path from "
            "where it is the dialect's"
        )


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as exc:
        # Not the address itself: a password may be what makes it unreadable.
        raise ValueError(f"an address of the model cannot be read: {type(exc).__name__}") from None
    return parts
