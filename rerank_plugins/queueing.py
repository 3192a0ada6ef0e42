"""The queue: what waits of all callers, who waits for room in it, and one lock around both."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import QueueFullError
from rerank_plugins.room import SOONEST_S, Line, Turn, seconds_until_room
from rerank_plugins.scoring import Counter, Counts
from rerank_plugins.waiting import WaitingPieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rerank_plugins.cache import PairCache
    from rerank_plugins.jobs import Job, Ticket
    from rerank_plugins.room import Pace

LOOKING_SHARE: Final = 10.0
"""Seconds between two looks through a full queue, for each second that the last one took."""


class PairQueue:
    """What waits for a worker, bounded in tokens, and the line of those who wait for room.

    The workers take out of ``waiting`` what they score, holding ``changed``, on which they sleep
    while there is nothing to do. *running* tells of each what it is at, as `seconds_until_room`
    wants it.
    """

    def __init__(
        self,
        cache: PairCache,
        counter: Counter,
        running: Callable[[], Iterable[tuple[Pace, int, float]]],
        *,
        queue_tokens: int,
        padded: bool,
    ) -> None:
        self.changed = threading.Condition()
        self.waiting = WaitingPieces(padded=padded)
        self.line = Line()
        self._cache = cache
        self._counter = counter
        self._running = running
        self._queue_tokens = queue_tokens
        self._look_again_s = 0.0
        self._ended = False

    @property
    def crowded(self) -> bool:
        """Whether there is no room, or others wait for it already."""
        return self._full or len(self.line) > 0

    @property
    def tokens(self) -> int:
        """Tokens that wait, a prefix that pairs share counted once."""
        return self.waiting.tokens

    @property
    def _full(self) -> bool:
        return self.waiting.tokens >= self._queue_tokens

    def refuse_if_crowded(self) -> None:
        """Raise `QueueFullError` if the queue is at its bound, or others wait for room in it."""
        if self.crowded:
            self._drop_unwanted()
        with self.changed:
            if not self.crowded:
                return
            wait_s = self._retry_after_s()
            why = (
                f"{self.waiting.tokens} tokens are waiting and queue_tokens is {self._queue_tokens}"
                if self._full
                else f"other requests wait for room in the queue, {len(self.line)} of them"
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
            with self.changed:
                if self._ended or not self.crowded:
                    return None
                self.line.join(turn)
                self.room_changed()
            job.future.add_done_callback(lambda _: self.leave(turn))
        except BaseException:
            # Ctrl-C comes anywhere, and others stand behind it.
            self.leave(turn)
            raise
        return turn

    def leave(self, turn: Turn) -> None:
        """Give up a turn: what it came for is queued, or its caller has gone."""
        with self.changed:
            self.line.leave(turn)
            self.room_changed()

    def promote(self, tickets: Iterable[Ticket]) -> None:
        """Let what waits of *tickets* wait as if it came now, from somebody interactive."""
        with self.changed:
            self.waiting.promote(tickets, time.monotonic())
            self.changed.notify_all()

    def end(self) -> None:
        """Let everybody go on who waits for room: there will be none; the lock is held."""
        self._ended = True
        self.line.end()

    def room_changed(self) -> None:
        """Let those in who wait for room, if there is some; the lock is held."""
        if not self._full:
            self.line.invite()

    def _drop_unwanted(self) -> None:
        """Take out of the queue what nobody waits for."""
        began_s = time.monotonic()
        if began_s < self._look_again_s:
            return
        with self.changed:
            tickets = [piece.ticket for piece in self.waiting]
        dropped = self._cache.drop_unwanted(tickets)
        self._counter.add(Counts(pairs_dropped=len(dropped)))
        with self.changed:
            self.waiting.drop_settled()
            self.room_changed()
        # Where many are refused, looking must not become the work.
        now_s = time.monotonic()
        self._look_again_s = now_s + LOOKING_SHARE * (now_s - began_s)

    def _retry_after_s(self) -> float:
        """Estimate when the queue has room, from the speed so far; the lock is held."""
        excess = max(0, self.waiting.tokens - self._queue_tokens)
        return max(SOONEST_S, seconds_until_room(excess, self._running()))
