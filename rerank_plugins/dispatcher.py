"""The queue in front of the replicas of a scorer, and the threads that enter them."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import ClosedError, QueueFullError, ScoringError
from rerank_plugins.home import join_all
from rerank_plugins.replica import Replica
from rerank_plugins.room import PATIENCE_S, SOONEST_S, Line, Turn, seconds_until_room
from rerank_plugins.scoring import Counter, Counts
from rerank_plugins.waiting import WaitingPieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rerank_plugins.cache import PairCache
    from rerank_plugins.home import Home
    from rerank_plugins.jobs import Job, Piece, Ticket, Waiter
    from rerank_plugins.protocols import AnyScorer
    from rerank_plugins.watching import BatchWatch

    Reopen = Callable[[int], AnyScorer]

logger = logging.getLogger(__name__)

LOOKING_SHARE: Final = 10.0
"""Seconds between two looks through a full queue, for each second that the last one took."""


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
        self._queue_tokens = queue_tokens
        self._max_wait_s = max_wait_s
        self._counter = counter or Counter()
        self._reopen = reopen
        self._changed = threading.Condition()
        self._waiting = WaitingPieces(padded=scorers[0].padded)
        self._line = Line()
        self._replicas = [
            Replica(number, home, scorer, cache, self._counter, watch, batch_tokens)
            for number, (home, scorer) in enumerate(zip(homes, scorers, strict=True))
        ]
        self._lost: list[Replica] = []
        self._look_again_s = 0.0
        self._closed = False
        self.dead = False
        self.scorer = scorers[0]
        """The one that encodes."""
        for replica in list(self._replicas):
            replica.home.run(partial(self._work, replica))
            replica.home.end()

    @property
    def crowded(self) -> bool:
        """Whether there is no room, or others wait for it already."""
        return self._full or len(self._line) > 0

    @property
    def tokens_waiting(self) -> int:
        """Tokens that wait, a prefix that pairs share counted once."""
        return self._waiting.tokens

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        return self._counter.total

    @property
    def budgets(self) -> list[int]:
        """Tokens that a batch may cost now, by replica that works."""
        return [replica.scoring.budget.tokens for replica in list(self._replicas)]

    @property
    def _full(self) -> bool:
        return self._waiting.tokens >= self._queue_tokens

    def refuse_if_crowded(self) -> None:
        """Raise `QueueFullError` if the queue is at its bound, or others wait for room in it."""
        if self.crowded:
            self._drop_unwanted()
        with self._changed:
            if not self.crowded:
                return
            wait_s = self._retry_after_s()
            why = (
                f"{self._waiting.tokens} tokens are waiting and queue_tokens is "
                f"{self._queue_tokens}"
                if self._full
                else f"other requests wait for room in the queue, {len(self._line)} of them"
            )
            raise QueueFullError(f"{why}; try again in {wait_s:.1f} s", retry_after_s=wait_s)

    def turn_for(self, job: Job) -> Turn | None:
        """Return *job*'s turn in the line for room, or None if it may go on at once.

        The turn owes a `leave`; it is left, too, as soon as the job is over.
        """
        if self.crowded:
            self._drop_unwanted()
        turn = Turn()
        try:
            with self._changed:
                if self._closed or self.dead or not self.crowded:
                    return None
                self._line.join(turn)
                self._room_changed()
            job.future.add_done_callback(lambda _: self.leave(turn))
        except BaseException:
            # Ctrl-C comes anywhere, and others stand behind it.
            self.leave(turn)
            raise
        return turn

    def leave(self, turn: Turn) -> None:
        """Give up a turn: what it came for is queued, or its caller has gone."""
        with self._changed:
            self._line.leave(turn)
            self._room_changed()

    def submit(self, pieces: Sequence[Piece], *, errand_of: int | None = None) -> None:
        """Queue what is to be scored; its tickets are resolved or failed through the cache.

        Only replica *errand_of* scores it, where one is named and works.

        Raises:
            ClosedError: the dispatcher was closed; the tickets are still the caller's.
            ScoringError: no worker is left; the tickets are still the caller's.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the reranker is closed")
            if self.dead:
                raise ScoringError(f"no worker of {self._name} is left", retryable=True)
            for replica in self._replicas:
                if replica.number == errand_of:
                    self._waiting.stamp(pieces, time.monotonic())
                    replica.errands.extend(pieces)
                    break
            else:
                self._waiting.add(pieces, time.monotonic())
            self._changed.notify_all()

    def promote(self, tickets: Iterable[Ticket]) -> None:
        """Let what waits of *tickets* wait as if it came now, from somebody interactive."""
        with self._changed:
            self._waiting.promote(tickets, time.monotonic())
            self._changed.notify_all()

    def close(self, *, wait: bool = True) -> None:
        """Let the running batches end, and fail what waits with `ClosedError`.

        The workers do both, and close their scorers. With *wait* the call returns when that is
        done; a call from a worker itself, or from a finalizer, does not wait.
        """
        with self._changed:
            already, self._closed = self._closed, True
            replicas = list(self._replicas)
            self._line.end()
            self._changed.notify_all()
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
        with self._changed:
            pieces = [*self._waiting, *(each for one in replicas for each in one.errands)]
        self._cache.fail([piece.ticket for piece in pieces], _closed_error)
        join_all(replica.home for replica in replicas)

    def _nudge(self) -> None:
        with self._changed:
            self._changed.notify_all()

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
        with self._changed:
            # First: other replicas may take it while the scorer is opened.
            self._waiting.put_back(again)
            self._changed.notify_all()
        replica.scoring.fail(deadly, fault)
        logger.error(
            "a worker of %s died and is replaced: %s: %s", self._name, type(fault).__name__, fault
        )
        if self._reopen is not None and not self._closed:
            replica.close()
            scorer = self._reopen(replica.number)
            with self._changed:
                replica.take(scorer)
                if replica is self._replicas[0]:
                    self.scorer = scorer
        self._counter.add(Counts(workers_replaced=1))

    def _lose(self, replica: Replica, fault: BaseException) -> None:
        """Go on without *replica*; without any, fail what waits."""
        again, deadly = replica.drop_batch()
        with self._changed:
            self._replicas.remove(replica)
            self._lost.append(replica)
            if self._replicas:
                self._waiting.put_back(again)
                self.scorer = self._replicas[0].scorer
            else:
                self.dead = True
                deadly += again + self._waiting.take_all()
                self._line.end()
            self._changed.notify_all()
        replica.scoring.fail(deadly, fault)

    def _take_all(self) -> list[Ticket]:
        with self._changed:
            waiting = self._waiting.take_all()
            for replica in self._replicas:
                waiting += replica.errands
                replica.errands = []
            self._changed.notify_all()
        return [piece.ticket for piece in waiting]

    def _next_batch(self, replica: Replica, *, busy: bool) -> list[Piece]:
        """Wait for pairs and form a batch for *replica*; empty once closed."""
        while True:
            with self._changed:
                if not self._wait_for_pieces(replica, busy=busy):
                    return []
                if replica.errands:
                    batch, replica.errands = replica.errands, []
                else:
                    batch = self._waiting.take_batch(replica.scoring.budget.tokens)
                # From here on whatever happens to the worker happens to these.
                replica.batch = batch
                self._room_changed()
            # Without the lock: the cache has one of its own, and neither waits for the other.
            if batch := replica.scoring.wanted(batch):
                return batch
            replica.batch = ()

    def _wait_for_pieces(self, replica: Replica, *, busy: bool) -> bool:
        """Sleep until there is a batch for *replica*; False once closed. The lock is held."""
        while not self._closed:
            if replica.errands:
                return True
            if not len(self._waiting):
                # Who has slept is idle, and starts at once.
                busy = False
                if not self._changed.wait(PATIENCE_S if len(self._line) else None):
                    self._line.skip()
                    self._room_changed()
            elif busy and (left := self._seconds_to_fill(replica)) > 0:
                self._changed.wait(left)
            else:
                return True
        return False

    def _seconds_to_fill(self, replica: Replica) -> float:
        """How long a worker that was busy may wait for its next batch; the lock is held."""
        oldest_s = self._waiting.oldest_s
        if oldest_s is None or self._waiting.tokens >= replica.scoring.budget.tokens:
            return 0.0
        return oldest_s + self._max_wait_s - time.monotonic()

    def _room_changed(self) -> None:
        """Let those in who wait for room, if there is some; the lock is held."""
        if not self._full:
            self._line.invite()

    def _drop_unwanted(self) -> None:
        """Take out of the queue what nobody waits for."""
        began_s = time.monotonic()
        if began_s < self._look_again_s:
            return
        with self._changed:
            tickets = [piece.ticket for piece in self._waiting]
        dropped = self._cache.drop_unwanted(tickets)
        self._counter.add(Counts(pairs_dropped=len(dropped)))
        with self._changed:
            self._waiting.drop_settled()
            self._room_changed()
        # Where many are refused, looking must not become the work.
        now_s = time.monotonic()
        self._look_again_s = now_s + LOOKING_SHARE * (now_s - began_s)

    def _retry_after_s(self) -> float:
        """Estimate when the queue has room, from the speed so far; the lock is held."""
        excess = max(0, self._waiting.tokens - self._queue_tokens)
        workers = (replica.running for replica in self._replicas)
        return max(SOONEST_S, seconds_until_room(excess, workers))


def _closed_error(_: Waiter) -> ClosedError:
    return ClosedError("the reranker was closed during the call")
