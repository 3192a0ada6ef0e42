"""The bound of a queue: who waits for room in it, and how soon there is some. No locks."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


INVITED_TURNS: Final = 4
"""Callers let in at a time once there is room. Each brings a chunk that is not encoded yet, so
nobody knows how many fit; more would only overfill the queue, fewer leave a fast scorer idle."""

PATIENCE_S: Final = 0.5
"""How long an idle worker waits for those who were invited: theirs may be an event loop that stands
still, or is gone, and others are behind them."""

RATE_MEMORY_S: Final = 30.0
"""Busy seconds after which older ones count half: speed changes with load and temperature."""

SOONEST_S: Final = 0.1
"""Less than this nobody is told to wait: a batch that should have ended will in a moment."""

UNMEASURED_WAIT_S: Final = 1.0
"""What callers are told while no batch has ended yet, and so no speed is known."""


class Turn:
    """A caller's place in the line for room; ``come`` is done when it may go on."""

    __slots__ = ("come",)

    def __init__(self) -> None:
        self.come: Future[None] = Future()

    def invite(self) -> None:
        """Let it go on, unless it has gone."""
        with contextlib.suppress(InvalidStateError):
            self.come.set_result(None)


class Line:
    """Who waits for room, first come, first served; whoever shares it locks it."""

    def __init__(self) -> None:
        self._turns: OrderedDict[Turn, None] = OrderedDict()
        self._invited: set[Turn] = set()

    def __len__(self) -> int:
        """How many are in it, those included that were invited and have not come yet."""
        return len(self._turns) + len(self._invited)

    def join(self, turn: Turn) -> None:
        """Give *turn* the last place; owes a `leave`."""
        self._turns[turn] = None

    def leave(self, turn: Turn) -> None:
        """Give up *turn*: what it came for is queued, or it has gone. Twice is once."""
        self._turns.pop(turn, None)
        self._invited.discard(turn)
        turn.invite()

    def invite(self) -> None:
        """Let the first go on, as many as may at a time: there is room."""
        while self._turns and len(self._invited) < INVITED_TURNS:
            turn, _ = self._turns.popitem(last=False)
            self._invited.add(turn)
            turn.invite()

    def skip(self) -> None:
        """Wait no longer for those who were invited and do not come."""
        self._invited.clear()

    def end(self) -> None:
        """Let everybody go on: there is no queue any more."""
        turns = [*self._turns, *self._invited]
        self._turns.clear()
        self._invited.clear()
        for turn in turns:
            turn.invite()


class Pace:
    """How fast a worker is, by the tokens and seconds of its last batches."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._busy_s = 0.0

    def note(self, tokens: int, busy_s: float) -> None:
        """Remember a batch of *tokens* without padding that took *busy_s*."""
        if self._busy_s > RATE_MEMORY_S:
            self._tokens /= 2
            self._busy_s /= 2
        self._tokens += tokens
        self._busy_s += busy_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens in a busy second; 0 while nothing is known."""
        return self._tokens / self._busy_s if self._busy_s else 0.0


def seconds_until_room(excess: int, running: Iterable[tuple[Pace, int, float]]) -> float:
    """Estimate when *excess* tokens will have left the queue.

    *running* tells of each worker its pace, the tokens of the batch that it scores (0 if none), and
    for how many seconds it has. Tokens leave the queue as a worker is free for the next batch.
    """
    workers = list(running)
    speed = sum(pace.tokens_per_s for pace, _, _ in workers)
    if not speed:
        return max(UNMEASURED_WAIT_S, *(since for _, _, since in workers), 0.0)
    free_s = (
        max(0.0, tokens / pace.tokens_per_s - since)
        for pace, tokens, since in workers
        if pace.tokens_per_s
    )
    return min(free_s) + excess / speed
