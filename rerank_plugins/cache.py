"""The pair cache: logits by pair, and the pairs that are on their way through the scorer."""

from __future__ import annotations

import math
import threading
from functools import partial
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from cachetools import LRUCache

from rerank_plugins.errors import ScoringError
from rerank_plugins.jobs import CachedPair, Ticket, Waiter
from rerank_plugins.options import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rerank_plugins.jobs import Job

KeyedPair = tuple[bytes, CachedPair]

_NOTHING: Final[Mapping[bytes, CachedPair]] = MappingProxyType({})


def pair_key(prefix: bytes, query: bytes, document: bytes) -> bytes:
    """Return the 16-byte cache key of a pair.

    *prefix* stands for all that changes a logit besides the two texts. Lengths go in before the
    texts: without them ``("ab", "c")`` and ``("a", "bc")`` would be one pair. Among 2**44 pairs two
    share a key by accident once in a trillion times; whoever makes two on purpose hashes 2**64
    texts, and gains that a text of his own has the logit of another of his own.
    """
    digest = blake2b(digest_size=16)
    for part in (prefix, query, document):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class CacheStats(NamedTuple):
    """Counters of one pair cache."""

    entries: int
    hits: int
    misses: int
    joined: int
    failed: int
    evictions: int
    shared: int


class PairCache:
    """Bounded, locked and counted; a pair is scored once however many wait for it.

    The bound is the number of entries; 0 keeps none, and pairs that are wanted at the same time
    are still scored once. *share* is given what was scored, with its keys.
    """

    def __init__(
        self, entries: int, *, share: Callable[[Sequence[KeyedPair]], object] | None = None
    ) -> None:
        self._kept = _CountingLRU(entries) if entries else None
        self._share = share
        self._tickets: dict[bytes, Ticket] = {}
        self._lock = threading.Lock()
        self._hits = self._misses = self._joined = self._failed = self._shared = 0

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return those of *keys*, each once, that are neither kept nor on their way."""
        with self._lock:
            kept = self._kept if self._kept is not None else {}
            return [
                key for key in dict.fromkeys(keys) if key not in kept and key not in self._tickets
            ]

    def claim(
        self,
        job: Job,
        keys: Sequence[bytes],
        places: Sequence[int],
        known: Mapping[bytes, CachedPair] = _NOTHING,
    ) -> dict[int, Ticket]:
        """Fill *job* with what is known and return tickets for what the caller has to score.

        ``keys[i]`` belongs to ``job.pairs[places[i]]``, and *known* are pairs that a shared cache
        has. The result maps ``i`` to its ticket; the caller owes each of them a `resolve`, a `fail`
        or a `drop_unwanted`.
        """
        mine: dict[int, Ticket] = {}
        try:
            with self._lock:
                for i, (key, place) in enumerate(zip(keys, places, strict=True)):
                    if not self._deliver(Waiter(job, place), key, known):
                        self._claim(Waiter(job, place), key, i, mine)
            job.settle()
        except BaseException as exc:
            # Ctrl-C comes anywhere, and the caller never gets what it would owe.
            self.fail(mine.values(), partial(_claiming_error, cause=exc))
            raise
        return mine

    def _deliver(self, waiter: Waiter, key: bytes, known: Mapping[bytes, CachedPair]) -> bool:
        """Fill a place of a job if its pair is kept or *known*; the lock is held."""
        pair = self._kept.get(key) if self._kept is not None else None
        if pair is not None:
            self._hits += 1
        elif (pair := known.get(key)) is not None:
            self._shared += 1
            if self._kept is not None:
                self._kept[key] = pair
        else:
            return False
        waiter.job.deliver(waiter.place, pair, cached=True)
        return True

    def _claim(self, waiter: Waiter, key: bytes, i: int, mine: dict[int, Ticket]) -> None:
        """Let a place of a job wait for its pair; the lock is held."""
        job, _ = waiter
        ticket = self._tickets.get(key)
        if ticket is None:
            self._misses += 1
            ticket = Ticket(key, job.priority)
            self._tickets[key] = mine[i] = ticket
        else:
            self._joined += 1
            if ticket.begun:
                job.wait("forward")
        ticket.waiters.append(waiter)

    def promote(self, keys: Iterable[bytes]) -> list[Ticket]:
        """Make those of *keys* interactive that are on their way as bulk; returns their tickets."""
        promoted: list[Ticket] = []
        with self._lock:
            for key in keys:
                ticket = self._tickets.get(key)
                if ticket is not None and ticket.priority is Priority.BULK:
                    ticket.priority = Priority.INTERACTIVE
                    promoted.append(ticket)
        return promoted

    def covers(self, keys: Iterable[bytes], known: Mapping[bytes, CachedPair] = _NOTHING) -> bool:
        """Whether none of *keys* would have to be scored now, where some pairs are *known*."""
        return all(key in known for key in self.missing(keys))

    def begin(self, tickets: Iterable[Ticket]) -> None:
        """Let those who wait for *tickets*, and look at a clock, know that a batch of them begins.

        Who joins one of them later is let know at once.
        """
        jobs: dict[int, Job] = {}
        with self._lock:
            for ticket in tickets:
                if not ticket.begun:
                    ticket.begun = True
                    jobs.update((id(job), job) for job, _ in ticket.waiters)
        for job in jobs.values():
            if job.waiting:
                job.wait("forward")

    def resolve(
        self,
        scored: Iterable[tuple[Ticket, CachedPair]],
        *,
        count: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Keep results, and hand each to whoever waits for it.

        Before anybody wakes, *count* is told how many were news: each replica that brings one of
        the last windows of a pair finds it answered.
        """
        answered: dict[int, Job] = {}
        news: list[KeyedPair] = []
        with self._lock:
            for ticket, pair in scored:
                if not self._settle(ticket):
                    continue
                news.append((ticket.key, pair))
                if self._kept is not None:
                    self._kept[ticket.key] = pair
                for job, place in ticket.waiters:
                    job.deliver(place, pair)
                    answered[id(job)] = job
        count(len(news))
        if self._share is not None:
            self._share(news)
        for job in answered.values():
            job.settle()

    def fail(self, tickets: Iterable[Ticket], error: Callable[[Waiter], BaseException]) -> None:
        """Raise an error of its own in everybody who waits for one of *tickets*; keep nothing."""
        waiters: list[Waiter] = []
        with self._lock:
            for ticket in tickets:
                if self._settle(ticket):
                    self._failed += 1
                    waiters.extend(ticket.waiters)
        for waiter in waiters:
            if waiter.job.waiting:
                waiter.job.fail(_made(error, waiter))

    def drop_unwanted(self, tickets: Iterable[Ticket]) -> set[int]:
        """Forget tickets that nobody waits for any more; returns their `id`.

        Those that were settled before are not among them. Looking and forgetting happen under one
        lock, so nobody joins a ticket that is going.
        """
        dropped: set[int] = set()
        # A job is asked once, not once for each of its thousands of pairs.
        waiting: dict[int, bool] = {}
        with self._lock:
            for ticket in tickets:
                if ticket.settled:
                    continue
                for job, _ in ticket.waiters:
                    wanted = waiting.get(id(job))
                    if wanted is None:
                        wanted = waiting[id(job)] = job.waiting
                    if wanted:
                        break
                else:
                    self._settle(ticket)
                    dropped.add(id(ticket))
        return dropped

    def _settle(self, ticket: Ticket) -> bool:
        """Take a ticket off the table, once; the lock is held.

        What is left of one that went before must not take a new ticket of the same pair along.
        """
        if ticket.settled:
            return False
        ticket.settled = True
        del self._tickets[ticket.key]
        return True

    def wanted_until(self, tickets: Iterable[Ticket]) -> float | None:
        """Return when the last of those who wait for *tickets* gives up, of `time.monotonic`.

        None is never; minus infinity that nobody waits now.
        """
        jobs: dict[int, Job] = {}
        with self._lock:
            for ticket in tickets:
                jobs.update((id(job), job) for job, _ in ticket.waiters)
        deadlines = [job.deadline for job in jobs.values() if job.waiting]
        if None in deadlines:
            return None
        return max((each for each in deadlines if each is not None), default=-math.inf)

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
                failed=self._failed,
                evictions=self._kept.evictions if self._kept is not None else 0,
                shared=self._shared,
            )


def _made(error: Callable[[Waiter], BaseException], waiter: Waiter) -> BaseException:
    try:
        return error(waiter)
    # A foreign error may fail at being put into words, and others still wait behind this one.
    except Exception as exc:  # noqa: BLE001
        return exc


def _claiming_error(_: Waiter, *, cause: BaseException) -> ScoringError:
    error = ScoringError("the call that was to score it was interrupted", retryable=True)
    error.__cause__ = cause
    return error


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
