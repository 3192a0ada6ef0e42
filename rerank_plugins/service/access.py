"""What is known of a request while it is served, and the line that is logged of it: no texts."""

from __future__ import annotations

import json
import logging
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

LOGGER: Final = logging.getLogger("rerank_plugins.access")
REQUEST_ID: Final = b"x-request-id"
CLIENT_GONE: Final = 499
"""Logged where the client hung up before there was an answer."""

_KEY: Final = "rerank_plugins.access"
_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_SHOWN: Final = 100


@dataclass(slots=True)
class Access:
    """One request: ``path`` is the route, or "other"; empty and 0 stand for what never was."""

    id: str
    method: str
    path: str
    asked_path: str
    dialect: str
    status: int = 0
    model: str = ""
    scorer: str = ""
    body_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    error: str = ""
    seconds: float = 0.0

    def log(self, level: int) -> None:
        """Write the line: ``key=value``, with the same as attributes for other formats."""
        if not LOGGER.isEnabledFor(level):
            return
        fields = self.fields()
        line = " ".join(f"{name}={_shown(value)}" for name, value in fields.items())
        LOGGER.log(level, "%s", line, extra={"access": fields})

    def fields(self) -> dict[str, object]:
        """Return what is logged, by name."""
        known: dict[str, object] = {
            "method": self.method,
            "path": self.asked_path[:_SHOWN] if self.path == "other" else self.path,
            "status": self.status,
            "ms": round(1000 * self.seconds, 2),
            "request_id": self.id,
        }
        for name in ("model", "scorer", "documents", "tokens", "error"):
            if value := getattr(self, name):
                known[name] = value
        return known


def _shown(value: object) -> str:
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(text) & {" ", '"', "="}
    # What a client chose must not look like a line or field of its own.
    return text if plain else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object a line; that of a request with its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = getattr(record, "access", None)
        if fields is None:
            fields = {"logger": record.name, "message": record.getMessage()}
        return json.dumps({"time": self.formatTime(record), "level": record.levelname, **fields})


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id that a request came with, if it can stand in a log, or a new one."""
    for name, value in headers:
        if name == REQUEST_ID and _ID.fullmatch(value):
            return value.decode("ascii")
    return uuid.uuid4().hex


def remember(scope: MutableMapping[str, Any], access: Access) -> None:
    """Keep *access* where `access_of` finds it."""
    scope[_KEY] = access


def access_of(scope: MutableMapping[str, Any]) -> Access:
    """Return what is known of a request."""
    found: Access = scope[_KEY]
    return found
