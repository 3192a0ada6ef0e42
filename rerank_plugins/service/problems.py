"""What can be wrong with a request, and which of it an error of the engine is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import (
    ClosedError,
    InputError,
    OutOfMemoryError,
    QueueFullError,
    RerankError,
    RerankTimeoutError,
    ScoringError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(StrEnum):
    """The kinds of problems that a dialect has a status code and a word for."""

    MALFORMED = "malformed"
    INVALID = "invalid"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD = "method"
    UNKNOWN_MODEL = "unknown_model"
    OVERLOADED = "overloaded"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"


STATUSES: Final[Mapping[Kind, int]] = {
    Kind.MALFORMED: 400,
    Kind.INVALID: 422,
    Kind.EMPTY: 422,
    Kind.TOO_LARGE: 413,
    Kind.UNAUTHORIZED: 401,
    Kind.NOT_FOUND: 404,
    Kind.METHOD: 405,
    Kind.UNKNOWN_MODEL: 404,
    Kind.OVERLOADED: 429,
    Kind.FAILED: 500,
    Kind.OUT_OF_MEMORY: 500,
    Kind.UNAVAILABLE: 503,
    Kind.TIMEOUT: 504,
}
"""Status codes; a dialect names those of its own that differ."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request gets no ranking: ``param`` is the field that is wrong, where it is one."""

    kind: Kind
    message: str
    param: str | None = None
    headers: Mapping[str, str] | None = None


class RefusedError(Exception):
    """A request is refused; caught where the answer is written."""

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.problem = Problem(kind, message, param, headers)


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that says when to come back: whole seconds, at least one."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}


_OF_ERRORS: Final[tuple[tuple[type[RerankError], Kind, str], ...]] = (
    (QueueFullError, Kind.OVERLOADED, "too much is waiting; try again later"),
    (RerankTimeoutError, Kind.TIMEOUT, "the deadline passed before the ranking was complete"),
    (ClosedError, Kind.UNAVAILABLE, "the service is shutting down"),
    (OutOfMemoryError, Kind.OUT_OF_MEMORY, "a document does not fit into the device's memory"),
    (ScoringError, Kind.FAILED, "the model failed"),
    (RerankError, Kind.FAILED, "the model cannot answer"),
)


def problem_of(error: Exception) -> Problem:
    """Return what *error* is to a client.

    What a model or a plugged-in function says may hold texts or paths: it stays in here.
    """
    if isinstance(error, RefusedError):
        return error.problem
    if isinstance(error, InputError):
        message = str(error)
        if message.startswith("instruction:"):
            # It names the model, maybe by its folder.
            message = "instruction: this model takes none"
        return Problem(Kind.INVALID, message)
    if isinstance(error, ScoringError) and error.retryable:
        return Problem(Kind.UNAVAILABLE, "the model cannot answer just now", None, retry_after(1))
    for cls, kind, message in _OF_ERRORS:
        if isinstance(error, cls):
            later = kind in (Kind.OVERLOADED, Kind.UNAVAILABLE)
            headers = retry_after(getattr(error, "retry_after_s", 1)) if later else None
            return Problem(kind, message, None, headers)
    return Problem(Kind.FAILED, "internal error")


def closing() -> Problem:
    """Return what a request is told that comes while the service is going."""
    return Problem(Kind.UNAVAILABLE, "the service is shutting down", headers=retry_after(1))
