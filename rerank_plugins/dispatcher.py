"""The queue in front of a scorer, and the one thread that enters it."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from rerank_plugins.batching import batch_cost, next_batch
from rerank_plugins.errors import (
    ClosedError,
    QueueFullError,
    RerankTimeoutError,
    ScoringError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.cache import PairCache, Ticket, Waiter
    from rerank_plugins.protocols import AnyScorer

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class DispatchStats:
    """Counters of one dispatcher; units as in `EngineStats`."""

    pairs_scored: int = 0
    pairs_failed: int = 0
    pairs_dropped: int = 0
    batches: int = 0
    tokens_scored: int = 0
    tokens_padded: int = 0
    tokens_waiting: int = 0
    busy_s: float = 0.0


class Dispatcher:
    """Forms batches from the pairs of all callers and scores them one batch at a time.

    An idle worker takes what is there at once; pairs gather only while it is busy. The thread
    starts with the first pair, sleeps on a condition while there is nothing to do, and ends with
    `close`.
    """

    def __init__(
        self, scorer: AnyScorer, cache: PairCache, *, batch_tokens: int, queue_tokens: int
    ) -> None:
        self._scorer = scorer
        self._padded = scorer.padded
        self._cache = cache
        self._batch_tokens = batch_tokens
        self._queue_tokens = queue_tokens
        self._changed = threading.Condition()
        self._sorted: list[Ticket] = []
        self._arrival: deque[Ticket] = deque()
        self._stats = DispatchStats()
        self._worker: threading.Thread | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether as many tokens wait as ``queue_tokens`` allows."""
        return self._stats.tokens_waiting >= self._queue_tokens

    def await_room(self, deadline: float | None) -> None:
        """Wait until the queue is below its bound: how a long request goes on once it has begun.

        Raises:
            RerankTimeoutError: *deadline* (of `time.monotonic`) passed first.
        """
        with self._changed:
            while self.full and not self._closed:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise RerankTimeoutError("the deadline passed while waiting for queue room")
                self._changed.wait(left)

    def refuse_if_full(self) -> None:
        """Raise `QueueFullError` if the queue is at its bound."""
        with self._changed:
            if self.full:
                self._forget(self._cache.drop_unwanted(self._sorted))
            if self.full:
                raise QueueFullError(
                    f"{self._stats.tokens_waiting} tokens are waiting and queue_tokens is "
                    f"{self._queue_tokens}; try again in {self._retry_after_s():.1f} s",
                    retry_after_s=self._retry_after_s(),
                )

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue encoded tickets; they are resolved or failed through the cache.

        Raises:
            ClosedError: the dispatcher was closed; the tickets are still the caller's.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the reranker is closed")
            self._sorted.extend(tickets)
            self._sorted.sort(key=attrgetter("tokens"))
            self._arrival.extend(tickets)
            self._stats.tokens_waiting += sum(ticket.tokens for ticket in tickets)
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._work, name=f"rerank-plugins {self._scorer.name}", daemon=True
                )
                self._worker.start()
            self._changed.notify_all()

    def close(self, *, wait: bool = True) -> None:
        """Fail what still waits with `ClosedError`, and let the running batch end.

        The scorer is closed by the thread that enters it. With *wait* the call returns when that
        is done; a call from the worker itself never waits.
        """
        with self._changed:
            already, self._closed = self._closed, True
            waiting, self._sorted = self._sorted, []
            self._arrival.clear()
            self._stats.tokens_waiting = 0
            worker = self._worker
            self._changed.notify_all()
        self._cache.fail(waiting, lambda _: ClosedError("the reranker was closed during the call"))
        if worker is None:
            if not already:
                self._scorer.close()
        elif wait and worker is not threading.current_thread():
            worker.join()

    def stats(self) -> DispatchStats:
        """Return a copy of the counters."""
        with self._changed:
            return DispatchStats(*(getattr(self._stats, name) for name in DispatchStats.__slots__))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._arrival and not self._closed:
                    self._changed.wait()
                if self._closed:
                    break
                batch = self._take_batch()
            if batch:
                started = time.monotonic()
                self._score(batch)
                with self._changed:
                    self._stats.busy_s += time.monotonic() - started
        self._scorer.close()

    def _take_batch(self) -> list[Ticket]:
        """Form a batch around the oldest ticket; the lock is held."""
        self._forget(self._cache.drop_unwanted(self._sorted))
        if not self._arrival:
            return []
        oldest = self._arrival[0]
        lengths = [ticket.tokens for ticket in self._sorted]
        position = bisect_left(lengths, oldest.tokens)
        while self._sorted[position] is not oldest:
            position += 1
        start, stop = next_batch(lengths, position, budget=self._batch_tokens, padded=self._padded)
        batch = self._sorted[start:stop]
        del self._sorted[start:stop]
        taken = set(map(id, batch))
        self._arrival = deque(ticket for ticket in self._arrival if id(ticket) not in taken)
        self._stats.tokens_waiting -= sum(lengths[start:stop])
        self._changed.notify_all()
        return batch

    def _forget(self, dropped: set[int]) -> None:
        """Take dropped tickets out of the queue; the lock is held."""
        if not dropped:
            return
        self._stats.pairs_dropped += len(dropped)
        self._stats.tokens_waiting -= sum(t.tokens for t in self._sorted if id(t) in dropped)
        self._sorted = [ticket for ticket in self._sorted if id(ticket) not in dropped]
        self._arrival = deque(ticket for ticket in self._arrival if id(ticket) not in dropped)

    def _score(self, batch: Sequence[Ticket]) -> None:
        """Score a batch; where it fails, halve it until the guilty pair stands alone."""
        try:
            logits = self._forward(batch)
        # A plug-in may raise anything, and the worker must outlive it.
        except Exception as exc:  # noqa: BLE001
            if len(batch) > 1:
                half = len(batch) // 2
                self._score(batch[:half])
                self._score(batch[half:])
                return
            with self._changed:
                self._stats.pairs_failed += 1
            self._cache.fail(batch, partial(self._scoring_error, cause=exc))
            return
        finite = np.isfinite(logits)
        lengths = [ticket.tokens for ticket in batch]
        with self._changed:
            self._stats.batches += 1
            self._stats.pairs_scored += int(finite.sum())
            self._stats.pairs_failed += int((~finite).sum())
            self._stats.tokens_scored += sum(lengths)
            self._stats.tokens_padded += batch_cost(lengths, padded=self._padded) - sum(lengths)
        self._cache.resolve(
            (ticket, float(logit))
            for ticket, logit, fine in zip(batch, logits, finite, strict=True)
            if fine
        )
        for ticket, logit, fine in zip(batch, logits, finite, strict=True):
            if not fine:
                cause = ScoringError(f"the logit is {logit}")
                self._cache.fail([ticket], partial(self._scoring_error, cause=cause))

    def _forward(self, batch: Sequence[Ticket]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        encoded = [ticket.encoded for ticket in batch]
        logits = np.asarray(self._scorer.forward(encoded), dtype=np.float32)
        if logits.shape != (len(batch),):
            raise ScoringError(
                f"{self._scorer.name} gave logits of shape {logits.shape} for {len(batch)} pairs"
            )
        return logits

    def _scoring_error(self, waiter: Waiter, *, cause: Exception) -> ScoringError:
        kind = "" if isinstance(cause, ScoringError) else f"{type(cause).__name__}: "
        error = ScoringError(
            f"{self._scorer.name} failed on {waiter.where}: {kind}{cause}",
            retryable=isinstance(cause, ScoringError) and cause.retryable,
        )
        error.__cause__ = cause
        return error

    def _retry_after_s(self) -> float:
        """Estimate when the queue has room, from the speed so far; the lock is held."""
        if not self._stats.tokens_scored:
            return 1.0
        return self._stats.busy_s / self._stats.tokens_scored * self._batch_tokens
