"""The pair cache: logits by pair, and the pairs that are on their way through the scorer."""

from __future__ import annotations

import contextlib
import operator
import threading
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rerank_plugins.protocols import EncodedPair


def pair_key(prefix: bytes, query: bytes, document: bytes) -> bytes:
    """Return the 16-byte cache key of a pair.

    *prefix* stands for all that changes a logit besides the two texts. Lengths go in before the
    texts: without them ``("ab", "c")`` and ``("a", "bc")`` would be one pair.
    """
    digest = blake2b(digest_size=16)
    for part in (prefix, query, document):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class CachedPair(NamedTuple):
    """What is kept of a scored pair."""

    logit: float
    truncated: bool


class Job:
    """One caller's wait for the logits of some of its texts.

    ``pairs[i]`` is the result for the caller's *i*-th document or pair. ``future`` is done once
    all of them are there, or with the first error. A job that is over, for whatever reason, wants
    nothing more: what only it waited for is dropped when a batch is formed.
    """

    __slots__ = ("_argument", "_lock", "_remaining", "cached", "future", "pairs")

    def __init__(self, size: int, *, argument: str = "documents") -> None:
        self._argument = argument
        self.pairs: list[CachedPair | None] = [None] * size
        self.cached = [False] * size
        self.future: Future[None] = Future()
        self._remaining = size
        self._lock = threading.Lock()
        if not size:
            self.future.set_result(None)

    @property
    def waiting(self) -> bool:
        """Whether somebody still wants the result."""
        return not self.future.done()

    def where(self, place: int) -> str:
        """Name a place by argument and index, for an error message."""
        return f"{self._argument}[{place}]"

    def deliver(self, place: int, pair: CachedPair, *, cached: bool = False) -> bool:
        """Fill one place; returns whether it was the last, and the caller is to be woken."""
        with self._lock:
            self.pairs[place] = pair
            self.cached[place] = cached
            self._remaining -= 1
            return self._remaining == 0

    def succeed(self) -> None:
        """Wake the caller, unless it has gone."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Raise *error* in the caller, unless it has gone or failed already."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def cancel(self) -> None:
        """Give up waiting."""
        self.future.cancel()


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
    """A distinct pair on its way through the scorer, and who waits for it."""

    key: bytes
    waiters: list[Waiter] = field(default_factory=list)
    encoded: EncodedPair | None = None
    tokens: int = 1

    def take(self, encoded: EncodedPair) -> None:
        """Keep the encoded pair; a length that is none fails here, in its caller's thread."""
        self.encoded, self.tokens = encoded, max(1, operator.index(encoded.tokens))


class CacheStats(NamedTuple):
    """Counters of one pair cache."""

    entries: int
    hits: int
    misses: int
    joined: int
    evictions: int


class PairCache:
    """Bounded, locked and counted; a pair is scored once however many wait for it.

    The bound is the number of entries; 0 keeps none, and pairs that are wanted at the same time
    are still scored once.
    """

    def __init__(self, entries: int) -> None:
        self._kept = _CountingLRU(entries) if entries else None
        self._tickets: dict[bytes, Ticket] = {}
        self._lock = threading.Lock()
        self._hits = self._misses = self._joined = 0

    def claim(self, job: Job, keys: Sequence[bytes], places: Sequence[int]) -> dict[int, Ticket]:
        """Fill *job* with what is known and return tickets for what the caller has to score.

        ``keys[i]`` belongs to ``job.pairs[places[i]]``. The result maps ``i`` to its ticket; the
        caller owes each of them a `resolve`, a `fail` or a `drop_unwanted`.
        """
        mine: dict[int, Ticket] = {}
        finished = False
        with self._lock:
            for i, (key, place) in enumerate(zip(keys, places, strict=True)):
                known = self._kept.get(key) if self._kept is not None else None
                if known is not None:
                    self._hits += 1
                    finished = job.deliver(place, known, cached=True)
                    continue
                ticket = self._tickets.get(key)
                if ticket is None:
                    self._misses += 1
                    ticket = self._tickets[key] = mine[i] = Ticket(key)
                else:
                    self._joined += 1
                ticket.waiters.append(Waiter(job, place))
        if finished:
            job.succeed()
        return mine

    def covers(self, keys: Iterable[bytes]) -> bool:
        """Whether none of *keys* would have to be scored now."""
        with self._lock:
            kept = self._kept if self._kept is not None else {}
            return all(key in kept or key in self._tickets for key in keys)

    def resolve(self, scored: Iterable[tuple[Ticket, float]]) -> None:
        """Keep logits, and hand each to whoever waits for it."""
        finished: list[Job] = []
        with self._lock:
            for ticket, logit in scored:
                pair = CachedPair(logit, ticket.encoded is not None and ticket.encoded.truncated)
                if self._kept is not None:
                    self._kept[ticket.key] = pair
                del self._tickets[ticket.key]
                finished.extend(
                    waiter.job
                    for waiter in ticket.waiters
                    if waiter.job.deliver(waiter.place, pair)
                )
        # Waking a caller may run its callbacks, so it happens outside the lock.
        for job in finished:
            job.succeed()

    def fail(self, tickets: Iterable[Ticket], error: Callable[[Waiter], BaseException]) -> None:
        """Raise an error of its own in everybody who waits for one of *tickets*; keep nothing."""
        waiters: list[Waiter] = []
        with self._lock:
            for ticket in tickets:
                if self._tickets.pop(ticket.key, None) is not None:
                    waiters.extend(ticket.waiters)
        for waiter in waiters:
            if waiter.job.waiting:
                waiter.job.fail(error(waiter))

    def drop_unwanted(self, tickets: Iterable[Ticket]) -> set[int]:
        """Forget tickets that nobody waits for any more; returns their `id`.

        Looking and forgetting happen under one lock, so nobody joins a ticket that is going.
        """
        dropped: set[int] = set()
        with self._lock:
            for ticket in tickets:
                if not any(waiter.job.waiting for waiter in ticket.waiters):
                    del self._tickets[ticket.key]
                    dropped.add(id(ticket))
        return dropped

    def clear(self) -> None:
        """Forget every logit; pairs on their way stay."""
        with self._lock:
            if self._kept is not None:
                self._kept.clear()

    def stats(self) -> CacheStats:
        """Return the counters as they are now."""
        with self._lock:
            return CacheStats(
                entries=len(self._kept) if self._kept is not None else 0,
                hits=self._hits,
                misses=self._misses,
                joined=self._joined,
                evictions=self._kept.evictions if self._kept is not None else 0,
            )


class _CountingLRU(LRUCache[bytes, CachedPair]):
    """An LRU that counts what it evicts."""

    def __init__(self, entries: int) -> None:
        super().__init__(entries)
        self.evictions = 0

    def popitem(self) -> tuple[bytes, CachedPair]:
        self.evictions += 1
        return super().popitem()

    def clear(self) -> None:
        """Forget everything, which is not an eviction."""
        before = self.evictions
        super().clear()
        self.evictions = before
