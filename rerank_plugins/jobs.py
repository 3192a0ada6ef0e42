"""Who waits for which pairs: a job per call, a ticket per distinct pair on its way."""

from __future__ import annotations

import contextlib
import operator
import threading
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rerank_plugins.protocols import EncodedPair


class CachedPair(NamedTuple):
    """What is kept of a scored pair."""

    logit: float
    truncated: bool


class Job:
    """One caller's wait for the logits of some of its texts.

    ``pairs[i]`` is the result for the caller's *i*-th document or pair. ``future`` is done once
    all of them are there, or with the first error. A job that is over, for whatever reason, wants
    nothing more: what only it waited for is dropped when a batch is formed. ``begun`` says that
    some of it was admitted to a queue, so that the rest waits for room and is not refused.
    """

    __slots__ = ("_argument", "_lock", "_remaining", "begun", "cached", "future", "pairs")

    def __init__(self, size: int, *, argument: str = "documents") -> None:
        self._argument = argument
        self.pairs: list[CachedPair | None] = [None] * size
        self.cached = [False] * size
        self.begun = False
        self.future: Future[None] = Future()
        self._remaining = size
        self._lock = threading.Lock()
        self.settle()

    @property
    def waiting(self) -> bool:
        """Whether somebody still wants the result."""
        return not self.future.done()

    def where(self, place: int) -> str:
        """Name a place by argument and index, for an error message."""
        return f"{self._argument}[{place}]"

    def deliver(self, place: int, pair: CachedPair, *, cached: bool = False) -> None:
        """Fill one place; a `settle` is owed, outside any lock, since it may run callbacks."""
        with self._lock:
            self.pairs[place] = pair
            self.cached[place] = cached
            self._remaining -= 1

    def settle(self) -> None:
        """Wake the caller if every place is filled, and it has not gone."""
        if self._remaining == 0:
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Raise *error* in the caller, unless it has gone or failed already."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def cancel(self) -> None:
        """Give up waiting."""
        self.future.cancel()

    def delivered(self) -> list[CachedPair]:
        """Return every pair of a job that succeeded."""
        pairs = [pair for pair in self.pairs if pair is not None]
        if len(pairs) != len(self.pairs):
            raise AssertionError("a job ended well with pairs missing")
        return pairs


class Waiter(NamedTuple):
    """Who waits for a pair, and as which of its documents."""

    job: Job
    place: int

    @property
    def where(self) -> str:
        """The argument and index, for an error message."""
        return self.job.where(self.place)


@dataclass(eq=False, slots=True)
class Ticket:
    """A distinct pair on its way through the scorer, and who waits for it.

    ``number`` is its place in the order of arrival, once it is queued.
    """

    key: bytes
    waiters: list[Waiter] = field(default_factory=list)
    encoded: EncodedPair | None = None
    tokens: int = 1
    truncated: bool = False
    number: int = 0

    def take(self, encoded: EncodedPair) -> None:
        """Keep the encoded pair; what is wrong with it fails here, in its caller's thread."""
        self.tokens = max(1, operator.index(encoded.tokens))
        self.truncated = bool(encoded.truncated)
        self.encoded = encoded
