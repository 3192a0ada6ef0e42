"""The queue in front of the replicas of a scorer, and the threads that enter them."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from rerank_plugins.errors import ClosedError, ScoringError
from rerank_plugins.home import join_all
from rerank_plugins.queueing import PairQueue
from rerank_plugins.replica import Replica
from rerank_plugins.room import PATIENCE_S
from rerank_plugins.scoring import Counter, Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_plugins.cache import PairCache
    from rerank_plugins.home import Home
    from rerank_plugins.jobs import Piece, Ticket, Waiter
    from rerank_plugins.protocols import AnyScorer
    from rerank_plugins.watching import BatchWatch

    Reopen = Callable[[int], AnyScorer]

logger = logging.getLogger(__name__)


class Dispatcher:
    """Forms batches from the pairs of all callers; each replica scores one batch at a time.

    An idle worker takes what is there at once; pairs gather only while all are busy, and one that
    ends a batch waits up to *max_wait_s* for the next to fill. The workers are in the *homes* of
    their scorers, sleep on a condition while there is nothing to do, and end with `close`. Whatever
    a scorer raises, nobody is left waiting: a worker that dies is replaced by *reopen*, which gives
    the scorer of that number anew. Where it cannot, the others go on; with the last one the queue
    is ``dead``, what waits fails, and nothing more is taken.
    """

    def __init__(
        self,
        scorers: Sequence[AnyScorer],
        homes: Sequence[Home],
        cache: PairCache,
        watch: BatchWatch,
        *,
        batch_tokens: int,
        queue_tokens: int,
        max_wait_s: float = 0.0,
        counter: Counter | None = None,
        reopen: Reopen | None = None,
    ) -> None:
        self._name = scorers[0].name
        self._cache = cache
        self._batch_tokens = batch_tokens
        self._max_wait_s = max_wait_s
        self._counter = counter or Counter()
        self._reopen = reopen
        self._replicas = [
            Replica(number, home, scorer, cache, self._counter, watch, batch_tokens)
            for number, (home, scorer) in enumerate(zip(homes, scorers, strict=True))
        ]
        self._lost: list[Replica] = []
        self.queue = PairQueue(
            cache,
            self._counter,
            lambda: (replica.running for replica in self._replicas),
            queue_tokens=queue_tokens,
            padded=scorers[0].padded,
        )
        self._closed = False
        self.dead = False
        self.scorer = scorers[0]
        """The one that encodes."""
        for replica in list(self._replicas):
            replica.home.run(partial(self._work, replica))
            replica.home.end()

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        return self._counter.total

    @property
    def budgets(self) -> list[int]:
        """Tokens that a batch may cost now, by replica that works."""
        return [replica.scoring.budget.tokens for replica in list(self._replicas)]

    def submit(self, pieces: Sequence[Piece], *, errand_of: int | None = None) -> None:
        """Queue what is to be scored; its tickets are resolved or failed through the cache.

        Only replica *errand_of* scores it, where one is named and works.

        Raises:
            ClosedError: the dispatcher was closed; the tickets are still the caller's.
            ScoringError: no worker is left; the tickets are still the caller's.
        """
        with self.queue.changed:
            if self._closed:
                raise ClosedError("the reranker is closed")
            if self.dead:
                raise ScoringError(f"no worker of {self._name} is left", retryable=True)
            for replica in self._replicas:
                if replica.number == errand_of:
                    self.queue.waiting.stamp(pieces, time.monotonic())
                    replica.errands.extend(pieces)
                    break
            else:
                self.queue.waiting.add(pieces, time.monotonic())
            self.queue.changed.notify_all()

    def close(self, *, wait: bool = True) -> None:
        """Let the running batches end, and fail what waits with `ClosedError`.

        The workers do both, and close their scorers. With *wait* the call returns when that is
        done; a call from a worker itself, or from a finalizer, does not wait.
        """
        with self.queue.changed:
            already, self._closed = self._closed, True
            replicas = list(self._replicas)
            self.queue.end()
            self.queue.changed.notify_all()
        if not already:
            for replica in self._lost:
                # Its thread has ended.
                replica.close()
        if any(replica.home.here for replica in replicas):
            # The garbage collector may close it here between a worker's look and its sleep, and
            # only another thread can tell when it sleeps.
            threading.Thread(target=self._nudge, name=f"rerank-plugins {self._name}").start()
            return
        if not wait:
            return
        # Not the workers' to do: a running batch may take long, and these will not be scored. It is
        # they who take them out: Ctrl-C here loses nothing.
        with self.queue.changed:
            pieces = [*self.queue.waiting, *(each for one in replicas for each in one.errands)]
        self._cache.fail([piece.ticket for piece in pieces], _closed_error)
        join_all(replica.home for replica in replicas)

    def _nudge(self) -> None:
        with self.queue.changed:
            self.queue.changed.notify_all()

    def _work(self, replica: Replica) -> None:
        try:
            while (fault := self._serve(replica)) is not None:
                self._replace(replica, fault)
                # Forgotten: an error holds the frames that hold the batch.
                del fault
            self._cache.fail(self._take_all(), _closed_error)
        except BaseException as exc:
            logger.exception("a worker of %s died and cannot be replaced", self._name)
            self._lose(replica, exc)
        finally:
            if self._closed or self._reopen is not None:
                replica.close()

    def _serve(self, replica: Replica) -> BaseException | None:
        """Score batches until closed, or until something raises what no batch may: returns that."""
        busy = False
        try:
            while batch := self._next_batch(replica, busy=busy):
                replica.score(batch)
                busy = True
        # A fault of our own, or what a scorer raised to end its thread.
        except BaseException as exc:  # noqa: BLE001
            return exc
        return None

    def _replace(self, replica: Replica, fault: BaseException) -> None:
        """Put a new scorer in the place of one whose worker died; what it had is tried again."""
        if not replica.batch:
            # A fault of our own, then: it would come again for ever.
            raise fault
        again, deadly = replica.drop_batch()
        with self.queue.changed:
            # First: other replicas may take it while the scorer is opened.
            self.queue.waiting.put_back(again)
            self.queue.changed.notify_all()
        replica.scoring.fail(deadly, fault)
        logger.error(
            "a worker of %s died and is replaced: %s: %s", self._name, type(fault).__name__, fault
        )
        if self._reopen is not None and not self._closed:
            replica.close()
            scorer = self._reopen(replica.number)
            with self.queue.changed:
                replica.take(scorer)
                if replica is self._replicas[0]:
                    self.scorer = scorer
        self._counter.add(Counts(workers_replaced=1))

    def _lose(self, replica: Replica, fault: BaseException) -> None:
        """Go on without *replica*; without any, fail what waits."""
        again, deadly = replica.drop_batch()
        with self.queue.changed:
            self._replicas.remove(replica)
            self._lost.append(replica)
            if self._replicas:
                self.queue.waiting.put_back(again)
                self.scorer = self._replicas[0].scorer
            else:
                self.dead = True
                deadly += again + self.queue.waiting.take_all()
                self.queue.end()
            self.queue.changed.notify_all()
        replica.scoring.fail(deadly, fault)

    def _take_all(self) -> list[Ticket]:
        with self.queue.changed:
            waiting = self.queue.waiting.take_all()
            for replica in self._replicas:
                waiting += replica.errands
                replica.errands = []
            self.queue.changed.notify_all()
        return [piece.ticket for piece in waiting]

    def _next_batch(self, replica: Replica, *, busy: bool) -> list[Piece]:
        """Wait for pairs and form a batch for *replica*; empty once closed."""
        while True:
            with self.queue.changed:
                if not self._wait_for_pieces(replica, busy=busy):
                    return []
                if replica.errands:
                    batch, replica.errands = replica.errands, []
                else:
                    batch = self.queue.waiting.take_batch(replica.scoring.budget.tokens)
                # From here on whatever happens to the worker happens to these.
                replica.batch = batch
                self.queue.room_changed()
            # Without the lock: the cache has one of its own, and neither waits for the other.
            if batch := replica.scoring.wanted(batch):
                return batch
            replica.batch = ()

    def _wait_for_pieces(self, replica: Replica, *, busy: bool) -> bool:
        """Sleep until there is a batch for *replica*; False once closed. The lock is held."""
        while not self._closed:
            if replica.errands:
                return True
            if not len(self.queue.waiting):
                # Who has slept is idle, and starts at once.
                busy = False
                if not self.queue.changed.wait(PATIENCE_S if len(self.queue.line) else None):
                    self.queue.line.skip()
                    self.queue.room_changed()
            elif busy and (left := self._seconds_to_fill(replica)) > 0:
                self.queue.changed.wait(left)
            else:
                return True
        return False

    def _seconds_to_fill(self, replica: Replica) -> float:
        """How long a worker that was busy may wait for its next batch; the lock is held."""
        oldest_s = self.queue.waiting.oldest_s
        if oldest_s is None or self.queue.waiting.tokens >= replica.scoring.budget.tokens:
            return 0.0
        return oldest_s + self._max_wait_s - time.monotonic()


def _closed_error(_: Waiter) -> ClosedError:
    return ClosedError("the reranker was closed during the call")
