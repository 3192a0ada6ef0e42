"""The pieces that wait to be scored: sorted for batching, and by arrival. No locks, no threads."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING

from rerank_plugins.batching import WaitingTokens, batch_order, next_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rerank_plugins.jobs import Piece

_order = attrgetter("order")


class WaitingPieces:
    """Pieces in the order of `batch_order`, each taken out once; whoever shares it locks it."""

    def __init__(self, *, padded: bool) -> None:
        self._padded = padded
        self._sorted: list[Piece] = []
        self._arrival: deque[Piece] = deque()
        # By `id`; what was taken stays in the line of arrivals until its turn comes.
        self._queued: set[int] = set()
        self._tokens = WaitingTokens(padded=padded)
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._sorted)

    @property
    def tokens(self) -> int:
        """How many wait, a prefix that pieces share counted once."""
        return self._tokens.total

    def add(self, pieces: Sequence[Piece]) -> None:
        """Let *pieces* wait behind all others."""
        for piece in pieces:
            place = batch_order(piece, padded=self._padded)
            piece.order = *place, next(self._numbers)
            insort(self._sorted, piece, key=_order)
        self._arrival.extend(pieces)
        self._queued.update(map(id, pieces))
        self._tokens.add(pieces)

    def take_batch(self, budget: int) -> list[Piece]:
        """Take out a batch of up to *budget* tokens around the oldest; empty if nothing waits."""
        while self._arrival and id(self._arrival[0]) not in self._queued:
            self._arrival.popleft()
        if not self._arrival:
            return []
        start, stop = next_batch(
            self._sorted,
            bisect_left(self._sorted, self._arrival[0].order, key=_order),
            budget=budget,
            padded=self._padded,
        )
        batch = self._sorted[start:stop]
        del self._sorted[start:stop]
        self._queued.difference_update(map(id, batch))
        self._tokens.remove(batch)
        return batch

    def take_all(self) -> list[Piece]:
        """Take out everything."""
        taken, self._sorted = self._sorted, []
        self._arrival.clear()
        self._queued.clear()
        self._tokens.remove(taken)
        return taken

    def drop_settled(self) -> None:
        """Take out what was dropped, or has failed."""
        # One look at each: a ticket may be settled meanwhile.
        wanted = [piece for piece in self._sorted if not piece.ticket.settled]
        self._queued = set(map(id, wanted))
        self._tokens.remove(piece for piece in self._sorted if id(piece) not in self._queued)
        self._sorted = wanted
