"""What goes wrong with a server, and what is done about it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import QueueFullError, RerankError, ScoringError

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_SAID: Final = 200
"""Characters of a server's own words that are repeated."""

_QUOTED: Final = 20
"""A server that repeats so many characters of a text quotes it, and its words are left out."""

_STRIDE: Final = 5
"""Within a text, it has to repeat up to so many more to be found out."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a kind of failure calls for; ``strikes`` against the server, `health.MOST_STRIKES` out.

    ``again`` asks once more, here or elsewhere; ``parts`` asks for halves of the documents, to find
    the one that is to blame. ``retryable`` is what callers are told.
    """

    again: bool = False
    parts: bool = False
    strikes: int = 0
    retryable: bool = False


class Kind(Enum):
    """Kinds of failures, each with its rule; numbers first, as equal rules would be one kind."""

    DENIED = 1, _Rule(strikes=6)
    """It does not let us in."""
    MISSING = 2, _Rule(strikes=6)
    """There is no such path or model, or it is elsewhere."""
    TOO_LARGE = 3, _Rule(parts=True)
    """The request has too many documents or bytes."""
    REFUSED = 4, _Rule(parts=True)
    """Something about the request, or one of its documents, is not to its liking."""
    BUSY = 5, _Rule(again=True, retryable=True)
    """It has too much to do."""
    FAULTY = 6, _Rule(again=True, parts=True, strikes=2, retryable=True)
    """It failed on the request, which may be for one of its documents."""
    CUT = 7, _Rule(again=True, strikes=3, retryable=True)
    """The connection broke: an idle one that the server closes does that, too."""
    DOWN = 8, _Rule(again=True, strikes=6, retryable=True)
    """It cannot be reached, or says nothing in time."""
    BROKEN = 9, _Rule(strikes=3)
    """It answered something that is no answer."""
    CHANGED = 10, _Rule(again=True, strikes=6)
    """It serves another model than before: another server may not."""
    LATE = 11, _Rule(strikes=2, retryable=True)
    """Nobody waits any longer; that may have been short."""

    @property
    def rule(self) -> _Rule:
        """What it calls for."""
        return self.value[1]


class Failure(Exception):  # noqa: N818  not an error that anybody gets
    """A request that got no answer; *words* say what happened, without what was asked."""

    def __init__(self, kind: Kind, words: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(words)
        self.kind = kind
        self.rule = kind.rule
        self.retry_after_s = retry_after_s

    def as_error(self) -> RerankError:
        """Return what callers get."""
        if self.kind is Kind.BUSY:
            return QueueFullError(str(self), retry_after_s=self.retry_after_s or 1.0)
        return ScoringError(str(self), retryable=self.rule.retryable)


_BY_STATUS: Final = {
    **dict.fromkeys((401, 403, 407, 498), Kind.DENIED),
    **dict.fromkeys((404, 405, 410), Kind.MISSING),
    **dict.fromkeys((408, 502, 503, 504), Kind.DOWN),
    413: Kind.TOO_LARGE,
    **dict.fromkeys((429, 529), Kind.BUSY),
    **dict.fromkeys((424, 500), Kind.FAULTY),
}


def kind_of(status: int) -> Kind:
    """Return what a *status* other than 200 says."""
    if status < 300:
        return Kind.BROKEN
    if status < 400:
        return Kind.MISSING
    return _BY_STATUS.get(status, Kind.REFUSED if status < 500 else Kind.DOWN)


def retry_after_s(header: str | None, now: float) -> float | None:
    """Read a Retry-After header, seconds or a date, at *now* of the epoch; None if neither."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", header.strip()):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def said(content: bytes, texts: Iterable[str] = (), *, secret: str | None = None) -> str:
    """Return what the body of a failure says, in the words of any dialect; blank if nothing.

    An HTML page says nothing. Neither do words that quote one of *texts* or hold *secret*: errors
    get into logs.
    """
    try:
        words = _words_in(json.loads(content))
    except (ValueError, RecursionError):
        return ""
    words = _on_a_line(words)
    if not words or (secret is not None and secret in words):
        return ""
    if any(_quotes(words, _on_a_line(text)) for text in texts):
        return ""
    return f": {words if len(words) <= LONGEST_SAID else words[:LONGEST_SAID] + '…'}"


def _on_a_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _quotes(words: str, text: str) -> bool:
    """Whether *words*, as far as they are repeated, have the beginning or a part of *text*."""
    if not text:
        return False
    parts = range(0, min(len(words), LONGEST_SAID) - _QUOTED + 1, _STRIDE)
    return text[:_QUOTED] in words or any(words[at : at + _QUOTED] in text for at in parts)


def _words_in(body: object) -> str:
    """Find the message where TEI, OpenAI's and Cohere's kin and FastAPI put it."""
    if isinstance(body, str):
        return body
    if isinstance(body, list):
        # What FastAPI finds wrong with a body; its "input" is what was sent.
        return "; ".join(filter(None, (_words_in(each) for each in body[:3])))
    if isinstance(body, dict):
        for key in ("error", "message", "detail", "msg"):
            if found := body.get(key):
                return _words_in(found)
    return ""
