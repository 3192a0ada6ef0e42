"""Where a shared cache is: a folder, or the URL of a Redis server, shown without its secrets."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

SCHEMES: Final = ("redis", "rediss", "unix")
"""Of Redis: over TCP, over TLS, through a Unix socket."""

_EXPECTED: Final = (
    'expected a folder, or a URL that begins with "redis://", "rediss://" or "unix://"'
)
_HOST: Final = re.compile(r"[^/\\]*:[0-9]+(/[0-9]*)?")
"""What looks like ``host:port``, where somebody left the scheme out."""


class Address(str):
    """A folder or URL. ``str`` is all of it, ``repr`` leaves out what may be a secret."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self.shown)

    @property
    def is_url(self) -> bool:
        """Whether it is no folder."""
        return "://" in self

    @property
    def shown(self) -> str:
        """The folder, or the URL without its user, password and options."""
        scheme, colon, rest = str(self).partition(":")
        if not self.is_url:
            # Meant for a URL, maybe, and then what stands before the host is a password.
            hides = scheme in SCHEMES or "@" in rest
            return f"{scheme}:…" if colon and hides else str(self)
        try:
            return _shown_url(self)
        except ValueError:
            return f"{scheme}://…"


def checked_address(value: str) -> Address:
    """Return *value* as an address.

    Raises:
        ValueError: it is none; the message holds nothing of it.
    """
    if not value.strip():
        raise ValueError("blank; leave it out for no shared cache")
    address = Address(value)
    if address.is_url:
        _shown_url(address)
    elif value.startswith(tuple(f"{scheme}:" for scheme in SCHEMES)) or _HOST.fullmatch(value):
        raise ValueError(_EXPECTED)
    elif "$" in value or "\0" in value:
        # diskcache would put a shell variable in its place.
        raise ValueError('a folder with "$" in its name cannot be used')
    return address


def _shown_url(address: str) -> str:
    """Return a URL without its secrets.

    Raises:
        ValueError: it is not one of Redis; the message holds nothing of it.
    """
    broken = ValueError(
        "the URL cannot be read; write special characters of a password as %40 and the like"
    )
    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(_EXPECTED)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        # Its message holds what it took for the port: a password, maybe.
        raise broken from None
    if parts.fragment or "@" in parts.path:
        raise broken
    if scheme == "unix":
        if not parts.path:
            raise ValueError("the URL names no socket; write unix:///path/to/redis.sock")
        return f"unix://{parts.path}"
    if not re.fullmatch(r"/?[0-9]*", parts.path):
        raise ValueError("the path of the URL is the number of a database, as in redis://host/0")
    hidden = "…@" if "@" in parts.netloc else ""
    return f"{scheme}://{hidden}{host}{'' if port is None else f':{port}'}{parts.path}"
