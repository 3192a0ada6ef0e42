"""The pieces that wait to be scored: sorted for batching, and by arrival. No locks, no threads."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from rerank_plugins.batching import WaitingTokens, batch_order, next_batch
from rerank_plugins.options import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rerank_plugins.jobs import Piece, Ticket

_order = attrgetter("order")
_due_s = attrgetter("due_s")

HANDICAP_S: Final = 1.5
"""How long interactive pieces pass bulk ones that came before them: longer than a burst of
requests, short enough for bulk to go on in seconds where interactive ones never end."""


class WaitingPieces:
    """Pieces by priority, each line in the order of `batch_order`; whoever shares it locks it.

    A piece is due when it comes, `HANDICAP_S` later if it is bulk. A batch is formed around the
    piece that is due first, of pieces of its priority. Times are those of one clock, in seconds.
    """

    def __init__(self, *, padded: bool) -> None:
        self._padded = padded
        self._lines = {priority: _Line() for priority in Priority}
        self._tokens = WaitingTokens(padded=padded)
        self._numbers = count()

    def __len__(self) -> int:
        return sum(len(line.pieces) for line in self._lines.values())

    def __iter__(self) -> Iterator[Piece]:
        for line in self._lines.values():
            yield from line.pieces

    @property
    def tokens(self) -> int:
        """How many wait, a prefix that pieces share counted once."""
        return self._tokens.total

    @property
    def oldest_s(self) -> float | None:
        """When the oldest came; None if nothing waits."""
        heads = [head.queued_s for line in self._lines.values() if (head := line.head())]
        return min(heads, default=None)

    def add(self, pieces: Sequence[Piece], now_s: float) -> None:
        """Let *pieces* wait behind all others of their priority: all of them, or none."""
        self.stamp(pieces, now_s)
        try:
            for piece in pieces:
                self._lines[piece.ticket.priority].append(piece)
            self._tokens.add(pieces)
        except BaseException:
            # Ctrl-C may come anywhere, and a worker would stumble over half a piece.
            self._drop(_one_of(pieces))
            raise

    def stamp(self, pieces: Sequence[Piece], now_s: float) -> None:
        """Give *pieces* their places among what waits, which they may take with `put_back`."""
        for piece in pieces:
            place = batch_order(piece, padded=self._padded)
            piece.order = *place, next(self._numbers)
            piece.queued_s = piece.due_s = now_s
            if piece.ticket.priority is Priority.BULK:
                piece.due_s += HANDICAP_S

    def put_back(self, pieces: Sequence[Piece]) -> None:
        """Let *pieces* that were taken out wait again, before all others of their priority."""
        for piece in sorted(pieces, key=_due_s, reverse=True):
            if piece.ticket.priority is Priority.INTERACTIVE:
                # It may have been promoted since.
                piece.due_s = piece.queued_s
            self._lines[piece.ticket.priority].prepend(piece)
        self._tokens.add(pieces)

    def promote(self, tickets: Iterable[Ticket], now_s: float) -> None:
        """Let what waits of *tickets*, bulk until now, wait as if it were interactive and new."""
        promoted = set(map(id, tickets))
        bulk = self._lines[Priority.BULK].pieces
        # What is due already is ahead of all that come now: it stays where it is.
        moving = [each for each in bulk if id(each.ticket) in promoted and each.due_s > now_s]
        try:
            self._move(moving, now_s)
        except BaseException:
            # Ctrl-C is one caller's, and these are others'.
            self._move(moving, now_s)
            raise

    def _move(self, pieces: Sequence[Piece], now_s: float) -> None:
        """Move *pieces* to the end of the interactive line, wherever they are."""
        for line in self._lines.values():
            line.drop(_one_of(pieces))
        for piece in pieces:
            piece.due_s = now_s
            self._lines[Priority.INTERACTIVE].append(piece)

    def take_batch(self, budget: int) -> list[Piece]:
        """Take out a batch of up to *budget* tokens; empty if nothing waits."""
        heads = [(head, line) for line in self._lines.values() if (head := line.head())]
        if not heads:
            return []
        head, line = min(heads, key=lambda each: each[0].due_s)
        start, stop = next_batch(
            line.pieces, line.place_of(head), budget=budget, padded=self._padded
        )
        for place in range(start, stop):
            if line.pieces[place].deaths:
                # Its worker died with it: alone it takes nobody along, should it do so again.
                start, stop = place, place + 1
                break
        batch = line.take(start, stop)
        self._tokens.remove(batch)
        return batch

    def take_all(self) -> list[Piece]:
        """Take out everything."""
        taken = list(self)
        self._lines = {priority: _Line() for priority in Priority}
        self._tokens.remove(taken)
        return taken

    def drop_settled(self) -> None:
        """Take out what was dropped, or has failed."""
        self._drop(lambda piece: piece.ticket.settled)

    def _drop(self, unwanted: Callable[[Piece], bool]) -> None:
        for line in self._lines.values():
            line.drop(unwanted)
        # Counted anew: whatever was cut short before is made good.
        tokens = WaitingTokens(padded=self._padded)
        tokens.add(self)
        self._tokens = tokens


class _Line:
    """The pieces of one priority: ``pieces`` as `batch_order` has it, the head by arrival."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._arrival: deque[Piece] = deque()
        # By `id`; what was taken stays in the line of arrivals until its turn comes.
        self._queued: set[int] = set()

    def append(self, piece: Piece) -> None:
        insort(self.pieces, piece, key=_order)
        self._arrival.append(piece)
        self._queued.add(id(piece))

    def prepend(self, piece: Piece) -> None:
        insort(self.pieces, piece, key=_order)
        self._arrival.appendleft(piece)
        self._queued.add(id(piece))

    def head(self) -> Piece | None:
        """The piece that came first."""
        while self._arrival and id(self._arrival[0]) not in self._queued:
            self._arrival.popleft()
        return self._arrival[0] if self._arrival else None

    def place_of(self, piece: Piece) -> int:
        return bisect_left(self.pieces, piece.order, key=_order)

    def take(self, start: int, stop: int) -> list[Piece]:
        taken = self.pieces[start:stop]
        del self.pieces[start:stop]
        self._queued.difference_update(map(id, taken))
        return taken

    def drop(self, unwanted: Callable[[Piece], bool]) -> None:
        # One look at each: a ticket may be settled meanwhile.
        wanted = [piece for piece in self.pieces if not unwanted(piece)]
        self._queued = set(map(id, wanted))
        self.pieces = wanted


def _one_of(pieces: Iterable[Piece]) -> Callable[[Piece], bool]:
    numbers = set(map(id, pieces))
    return lambda piece: id(piece) in numbers
