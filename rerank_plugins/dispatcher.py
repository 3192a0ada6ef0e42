"""The queue in front of a scorer, and the one thread that enters it."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from rerank_plugins.errors import ClosedError, QueueFullError, RerankTimeoutError
from rerank_plugins.scoring import BatchScoring, Counter, Counts, scoring_error
from rerank_plugins.waiting import WaitingPieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.cache import PairCache
    from rerank_plugins.jobs import Piece, Ticket, Waiter
    from rerank_plugins.protocols import AnyScorer

logger = logging.getLogger(__name__)

EXIT_WAIT_S = 30.0
"""How long a closing waits for the running batch: a scorer that never returns must not hold it."""


class Dispatcher:
    """Forms batches from the pairs of all callers and scores them one batch at a time.

    An idle worker takes what is there at once; pairs gather only while it is busy. The thread
    starts with the first pair, sleeps on a condition while there is nothing to do, and ends with
    `close`. Whatever a scorer raises, nobody is left waiting.
    """

    def __init__(
        self, scorer: AnyScorer, cache: PairCache, *, batch_tokens: int, queue_tokens: int
    ) -> None:
        self._scorer = scorer
        self._name = scorer.name
        self._cache = cache
        self._batch_tokens = batch_tokens
        self._queue_tokens = queue_tokens
        self._changed = threading.Condition()
        self._waiting = WaitingPieces(padded=scorer.padded)
        self._counter = Counter()
        self._scoring = BatchScoring(scorer, cache, self._counter)
        self._worker: threading.Thread | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether as many tokens wait as ``queue_tokens`` allows."""
        return self._waiting.tokens >= self._queue_tokens

    @property
    def tokens_waiting(self) -> int:
        """Tokens that wait, a prefix that pairs share counted once."""
        return self._waiting.tokens

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        return self._counter.total

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
                self._drop_unwanted()
            if self.full:
                wait_s = self._retry_after_s()
                raise QueueFullError(
                    f"{self._waiting.tokens} tokens are waiting and queue_tokens is "
                    f"{self._queue_tokens}; try again in {wait_s:.1f} s",
                    retry_after_s=wait_s,
                )

    def submit(self, pieces: Sequence[Piece]) -> None:
        """Queue what is to be scored; its tickets are resolved or failed through the cache.

        Raises:
            ClosedError: the dispatcher was closed; the tickets are still the caller's.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the reranker is closed")
            if self._worker is None:
                worker = threading.Thread(
                    target=self._work, name=f"rerank-plugins {self._name}", daemon=True
                )
                worker.start()
                self._worker = worker
            self._waiting.add(pieces)
            self._changed.notify_all()

    def close(self, *, wait: bool = True) -> None:
        """Let the running batch end, and fail what waits with `ClosedError`.

        The worker does both, and closes the scorer. With *wait* the call returns when that is
        done; a call from the worker itself, or from a finalizer, does not wait.
        """
        with self._changed:
            already, self._closed = self._closed, True
            worker = self._worker
            self._changed.notify_all()
        if worker is None:
            if not already:
                self._close_scorer()
            return
        if wait and worker is not threading.current_thread():
            # Not the worker's to do: the running batch may take long, and these will not be scored.
            self._cache.fail(self._take_all(), _closed_error)
            worker.join(EXIT_WAIT_S)

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                started = time.monotonic()
                self._scoring.score(batch)
                self._counter.add(Counts(busy_s=time.monotonic() - started))
            self._cache.fail(self._take_all(), _closed_error)
        # A fault of our own, then: whoever waits must hear of it.
        except BaseException as exc:
            logger.exception("the worker of %s died", self._name)
            with self._changed:
                self._closed = True
            self._take_all()
            self._cache.fail_all(partial(scoring_error, scorer=self._name, cause=exc))
        finally:
            self._close_scorer()

    def _close_scorer(self) -> None:
        try:
            self._scorer.close()
        # A plug-in may raise anything; closing goes on.
        except Exception:
            logger.exception("closing the scorer %s failed", self._name)

    def _take_all(self) -> list[Ticket]:
        with self._changed:
            waiting = self._waiting.take_all()
            self._changed.notify_all()
        return [piece.ticket for piece in waiting]

    def _next_batch(self) -> list[Piece]:
        """Wait for pairs and form a batch around the oldest; empty once closed."""
        with self._changed:
            while not self._closed:
                batch = self._waiting.take_batch(self._batch_tokens)
                if not batch:
                    self._changed.wait()
                    continue
                self._changed.notify_all()
                if batch := self._scoring.wanted(batch):
                    return batch
        return []

    def _drop_unwanted(self) -> None:
        """Take out of the queue what nobody waits for; the lock is held."""
        dropped = self._cache.drop_unwanted(piece.ticket for piece in self._waiting)
        self._counter.add(Counts(pairs_dropped=len(dropped)))
        self._waiting.drop_settled()
        self._changed.notify_all()

    def _retry_after_s(self) -> float:
        """Estimate when the queue has room, from the speed so far; the lock is held."""
        done = self.counts
        if not done.tokens_scored:
            return 1.0
        return done.busy_s / done.tokens_scored * self._batch_tokens


def _closed_error(_: Waiter) -> ClosedError:
    return ClosedError("the reranker was closed during the call")
