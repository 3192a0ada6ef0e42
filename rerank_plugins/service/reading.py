"""From the bytes of a request to what it asks for, each complaint naming its field."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from rerank_plugins.service.access import access_of
from rerank_plugins.service.problems import Kind, RefusedError, retry_after
from rerank_plugins.settings import LONGEST_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from rerank_plugins.service.asking import Ask
    from rerank_plugins.service.dialects.dialect import AnyEndpoint
    from rerank_plugins.service.settings import ServiceSettings
    from rerank_plugins.service.state import Service

TIMEOUT_HEADER: Final = "x-timeout-s"
"""Header in which a client says how many seconds it will wait."""

_LISTS: Final = (
    "documents", "texts", "passages", "queries", "items", "text_1", "text_2", "data_1", "data_2"
)  # fmt: skip
_SHOWN: Final = 3
"""Complaints of one request that are named."""


async def read_body(request: Request, service: Service) -> bytearray:
    """Return the body, counted as it comes; it counts until its request is answered.

    Raises:
        RefusedError: it is too long, compressed, does not come in time, or others fill the room.
    """
    timeout_s = service.settings.body_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, service)
    except TimeoutError:
        raise RefusedError(
            Kind.SLOW,
            f"the body did not come within {timeout_s:g} seconds",
            headers={"connection": "close"},
        ) from None


async def _read(request: Request, service: Service) -> bytearray:
    limit, room = service.settings.max_body_bytes, service.settings.max_bodies_bytes
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise RefusedError(
            Kind.MALFORMED, "content-encoding: compressed bodies are not taken; send plain JSON"
        )
    too_large = RefusedError(Kind.TOO_LARGE, f"the body is longer than {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body, access = bytearray(), access_of(request.scope)
    async for chunk in request.stream():
        body += chunk
        access.body_bytes += len(chunk)
        service.body_bytes += len(chunk)
        if len(body) > limit:
            raise too_large
        if service.body_bytes > max(room, len(body)):
            raise RefusedError(
                Kind.OVERLOADED,
                f"requests of {room} bytes are being answered; try again later",
                headers=retry_after(1),
            )
    return body


def json_object(body: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object that a body holds.

    Raises:
        RefusedError: it holds none.
    """
    try:
        sent = from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as exc:
        # It names line and column, and nothing of the text.
        raise RefusedError(Kind.MALFORMED, f"the body is no JSON: {exc}") from None
    if not isinstance(sent, dict):
        raise RefusedError(Kind.INVALID, "the body must be a JSON object")
    return sent


def asks_of(
    sent: dict[str, Any], endpoint: AnyEndpoint, settings: ServiceSettings
) -> Sequence[Ask]:
    """Return the rankings that a request to *endpoint* asks for.

    Raises:
        RefusedError: a field is wrong, or there is too much of something.
    """
    _check_counts(sent, settings)
    try:
        asks = endpoint.asks(endpoint.request.model_validate(sent))
    except ValidationError as exc:
        raise _refusal(exc) from None
    _check_lengths(asks, settings)
    return asks


def timeout_of(request: Request) -> float | None:
    """Return the seconds that the client will wait, None where it does not say.

    Raises:
        RefusedError: the header holds no number of seconds.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_TIMEOUT_S:
        raise RefusedError(Kind.INVALID, f"{TIMEOUT_HEADER}: expected a number of seconds above 0")
    return seconds


def _check_counts(sent: dict[str, Any], settings: ServiceSettings) -> None:
    """Refuse too many documents before each is looked at."""
    for name in _LISTS:
        value = sent.get(name)
        if isinstance(value, list) and len(value) > settings.max_documents:
            raise RefusedError(
                Kind.INVALID,
                f"{name}: at most {settings.max_documents} are taken, got {len(value)}",
                param=name,
            )


def _check_lengths(asks: Sequence[Ask], settings: ServiceSettings) -> None:
    limit = settings.max_characters
    for ask in asks:
        if len(ask.query) > limit:
            raise RefusedError(
                Kind.INVALID, f"query: longer than {limit} characters", param="query"
            )
        for place, document in enumerate(ask.documents):
            if len(document) > limit:
                raise RefusedError(
                    Kind.INVALID,
                    f"documents[{place if ask.places is None else ask.places[place]}]: "
                    f"longer than {limit} characters",
                    param="documents",
                )


def _refusal(error: ValidationError) -> RefusedError:
    """Name the fields that are wrong, without what they hold."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    complaints: dict[str, str] = {}
    for each in found:
        # A union complains once for each of its members.
        complaints.setdefault(_where(each["loc"]), _what(each["type"], each["msg"]))
        if len(complaints) == _SHOWN:
            break
    empty = found[0]["type"] == "too_short" if len(complaints) == 1 else False
    return RefusedError(
        Kind.EMPTY if empty else Kind.INVALID,
        "; ".join(f"{where}: {what}" if where else what for where, what in complaints.items()),
        param=str(found[0]["loc"][0]) if found[0]["loc"] else None,
    )


def _what(kind: str, message: str) -> str:
    # The only pattern there is asks for something that is no space.
    blank = kind in ("string_pattern_mismatch", "string_too_short")
    return "blank" if blank else message.removeprefix("Value error, ")


def _where(place: tuple[int | str, ...]) -> str:
    """Write ``("documents", 3, "str")`` as ``documents[3]``: names below a place are of types."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not path or part == "text":
            path += f".{part}" if path else part
    return path
