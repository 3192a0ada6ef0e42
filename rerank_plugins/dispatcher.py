"""The queue in front of a scorer, and the one thread that enters it."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from rerank_plugins.batching import WaitingTokens, batch_cost, batch_order, next_batch
from rerank_plugins.errors import ClosedError, QueueFullError, RerankTimeoutError, ScoringError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rerank_plugins.cache import PairCache
    from rerank_plugins.jobs import CachedPair, Piece, Ticket, Waiter
    from rerank_plugins.protocols import AnyScorer

logger = logging.getLogger(__name__)

_order = attrgetter("order")

EXIT_WAIT_S = 30.0
"""How long a closing waits for the running batch: a scorer that never returns must not hold it."""


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
    `close`. Whatever a scorer raises, nobody is left waiting.
    """

    def __init__(
        self, scorer: AnyScorer, cache: PairCache, *, batch_tokens: int, queue_tokens: int
    ) -> None:
        self._scorer = scorer
        self._name = scorer.name
        self._padded = scorer.padded
        self._cache = cache
        self._batch_tokens = batch_tokens
        self._queue_tokens = queue_tokens
        self._changed = threading.Condition()
        self._sorted: list[Piece] = []
        self._arrival: deque[Piece] = deque()
        self._queued: set[int] = set()
        self._tokens = WaitingTokens(padded=self._padded)
        self._numbers = count()
        self._stats = DispatchStats()
        self._worker: threading.Thread | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether as many tokens wait as ``queue_tokens`` allows."""
        return self._tokens.total >= self._queue_tokens

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
                self._forget(self._cache.drop_unwanted(piece.ticket for piece in self._sorted))
            if self.full:
                wait_s = self._retry_after_s()
                raise QueueFullError(
                    f"{self._tokens.total} tokens are waiting and queue_tokens is "
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
            for piece in pieces:
                place = batch_order(piece, padded=self._padded)
                piece.order = *place, next(self._numbers)
                insort(self._sorted, piece, key=_order)
            self._arrival.extend(pieces)
            self._queued.update(map(id, pieces))
            self._tokens.add(pieces)
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

    def stats(self) -> DispatchStats:
        """Return a copy of the counters."""
        with self._changed:
            return replace(self._stats, tokens_waiting=self._tokens.total)

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                started = time.monotonic()
                self._score(batch)
                with self._changed:
                    self._stats.busy_s += time.monotonic() - started
            self._cache.fail(self._take_all(), _closed_error)
        # A fault of our own, then: whoever waits must hear of it.
        except BaseException as exc:
            logger.exception("the worker of %s died", self._name)
            with self._changed:
                self._closed = True
            self._take_all()
            self._cache.fail_all(partial(self._scoring_error, cause=exc))
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
            waiting, self._sorted = self._sorted, []
            self._arrival.clear()
            self._queued.clear()
            self._tokens.remove(waiting)
            self._changed.notify_all()
        return [piece.ticket for piece in waiting]

    def _next_batch(self) -> list[Piece]:
        """Wait for pairs and form a batch around the oldest; empty once closed."""
        with self._changed:
            while not self._closed:
                while self._arrival and id(self._arrival[0]) not in self._queued:
                    self._arrival.popleft()
                if not self._arrival:
                    self._changed.wait()
                    continue
                oldest = self._arrival[0]
                start, stop = next_batch(
                    self._sorted,
                    bisect_left(self._sorted, oldest.order, key=_order),
                    budget=self._batch_tokens,
                    padded=self._padded,
                )
                batch = self._sorted[start:stop]
                del self._sorted[start:stop]
                self._queued.difference_update(map(id, batch))
                self._tokens.remove(batch)
                self._changed.notify_all()
                if batch := self._wanted(batch):
                    return batch
        return []

    def _wanted(self, batch: Sequence[Piece]) -> list[Piece]:
        """Leave out what nobody waits for any more, and count the pairs of it."""
        dropped = self._cache.drop_unwanted(piece.ticket for piece in batch)
        with self._changed:
            self._stats.pairs_dropped += len(dropped)
        return [piece for piece in batch if not piece.ticket.settled]

    def _forget(self, dropped: set[int]) -> None:
        """Take what was dropped, or has failed, out of the queue; the lock is held."""
        self._stats.pairs_dropped += len(dropped)
        # One look at each: a ticket may be settled meanwhile.
        wanted = [piece for piece in self._sorted if not piece.ticket.settled]
        self._queued = set(map(id, wanted))
        self._tokens.remove(piece for piece in self._sorted if id(piece) not in self._queued)
        self._sorted = wanted
        self._changed.notify_all()

    def _score(self, batch: Sequence[Piece]) -> None:
        """Score a batch; where it fails, halve it until the guilty pair stands alone."""
        failure: BaseException | None = None
        try:
            logits = self._forward(batch)
        # A plug-in may raise anything, and the worker must outlive it.
        except BaseException as exc:  # noqa: BLE001
            failure = exc
        if failure is None:
            self._resolve(batch, logits)
        elif len(batch) == 1 or isinstance(failure, _BrokenContractError):
            self._fail(batch, failure)
        else:
            # Forgotten first: an error holds the frames that hold the batch.
            failure = None
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                # Once its request has failed, the rest of it is nobody's.
                if wanted := self._wanted(part):
                    self._score(wanted)

    def _resolve(self, batch: Sequence[Piece], logits: NDArray[np.float32]) -> None:
        answered: list[tuple[Ticket, CachedPair]] = []
        wrong: list[tuple[Piece, np.float32]] = []
        for piece, logit in zip(batch, logits, strict=True):
            if not np.isfinite(logit):
                wrong.append((piece, logit))
            elif pair := piece.ticket.answer(piece.place, float(logit)):
                answered.append((piece.ticket, pair))
        cost = batch_cost(batch, padded=self._padded)
        padding = cost - sum(piece.tokens for piece in batch) if self._padded else 0
        with self._changed:
            self._stats.batches += 1
            self._stats.pairs_scored += len(answered)
            self._stats.tokens_scored += cost - padding
            self._stats.tokens_padded += padding
        self._cache.resolve(answered)
        for piece, logit in wrong:
            self._fail([piece], ScoringError(f"the logit is {logit}"))

    def _fail(self, pieces: Sequence[Piece], cause: BaseException) -> None:
        # Once for each: several windows of one document may fail together.
        tickets = {id(piece.ticket): piece.ticket for piece in pieces if not piece.ticket.settled}
        with self._changed:
            self._stats.pairs_failed += len(tickets)
        self._cache.fail(tickets.values(), partial(self._scoring_error, cause=cause))

    def _forward(self, batch: Sequence[Piece]) -> NDArray[np.float32]:
        logits = np.asarray(self._scorer.forward([piece.encoded for piece in batch]))
        if logits.shape != (len(batch),) or logits.dtype.kind not in "fiu":
            raise _BrokenContractError(
                f"forward gave {logits.dtype} of shape {logits.shape} for {len(batch)} pairs"
            )
        return logits.astype(np.float32, copy=False)

    def _scoring_error(self, waiter: Waiter, *, cause: BaseException) -> ScoringError:
        kind = "" if isinstance(cause, ScoringError) else f"{type(cause).__name__}: "
        error = ScoringError(
            f"{self._name} failed on {waiter.where}: {kind}{cause}",
            retryable=isinstance(cause, ScoringError) and cause.retryable,
        )
        error.__cause__ = cause
        return error

    def _retry_after_s(self) -> float:
        """Estimate when the queue has room, from the speed so far; the lock is held."""
        if not self._stats.tokens_scored:
            return 1.0
        return self._stats.busy_s / self._stats.tokens_scored * self._batch_tokens


class _BrokenContractError(ScoringError):
    """The scorer's answer fits no batch: no pair of it is to blame."""


def _closed_error(_: Waiter) -> ClosedError:
    return ClosedError("the reranker was closed during the call")
