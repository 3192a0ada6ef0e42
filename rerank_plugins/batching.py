"""Pairs to batches under a token budget, and what waiting pairs will cost."""

from __future__ import annotations

from math import ceil, inf
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ATTENDED: Final = 8
"""What the pairs of a batch see, each with its prefix, is at most so many times the budget and the
first prefix: attention may hold keys and values of every pair's prefix at once."""


class Load(Protocol):
    """What a pair adds to a batch: its ``own`` tokens, and those of the prefix that it begins with.

    Pairs of one ``prefix`` share it: an unpadded batch computes it once. Empty means none, and then
    ``prefix_tokens`` is 0.
    """

    @property
    def own(self) -> int:
        """Tokens without the prefix."""

    @property
    def prefix(self) -> bytes:
        """The prefix by its digest."""

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the prefix."""


def batch_order(pair: Load, *, padded: bool) -> tuple[bytes, int]:
    """Return what waiting pairs are sorted by: those that cost least together lie side by side."""
    # A padded batch repeats the prefix in each row: there it is part of the pair.
    return (b"", pair.own + pair.prefix_tokens) if padded else (pair.prefix, pair.own)


def next_batch(
    pairs: Sequence[Load], position: int, *, budget: int, padded: bool
) -> tuple[int, int]:
    """Return the slice ``(start, stop)`` of *pairs*, in `batch_order`, to score together.

    The slice holds *position*, the pair that has waited longest, and grows towards whichever
    neighbour needs no further prefix, then whichever is nearer in length: padding is most of the
    cost when a short pair sits beside a long one. Its `batch_cost` stays within *budget*, to which,
    unless *padded*, the oldest pair's prefix comes on top. A pair beyond that travels alone.
    """
    oldest = pairs[position]
    start, stop = position, position + 1
    anchor = longest = batch_order(oldest, padded=padded)[1]
    # With its prefix counted, a long query would leave no room for pairs that share it.
    total, seen = anchor, oldest.own + oldest.prefix_tokens
    most_seen = inf if padded else ATTENDED * (budget + oldest.prefix_tokens)
    while True:
        best: tuple[bool, int, int, int] | None = None
        # The longer neighbour first: it is taken where both are as near.
        for place, edge in ((stop, stop - 1), (start - 1, start)):
            if not 0 <= place < len(pairs):
                continue
            pair = pairs[place]
            prefix, length = batch_order(pair, padded=padded)
            further = not padded and prefix != pairs[edge].prefix
            if padded:
                cost = (stop - start + 1) * max(longest, length)
            else:
                cost = total + length + (pair.prefix_tokens if further else 0)
            fits = cost <= budget and seen + pair.own + pair.prefix_tokens <= most_seen
            nearness = further, abs(length - anchor)
            if fits and (best is None or nearness < best[:2]):
                best = *nearness, place, cost
        if best is None:
            return start, stop
        _, _, place, total = best
        longest = max(longest, batch_order(pairs[place], padded=padded)[1])
        seen += pairs[place].own + pairs[place].prefix_tokens
        start, stop = min(start, place), max(stop, place + 1)


def batch_cost(pairs: Sequence[Load], *, padded: bool) -> int:
    """Tokens that a batch of *pairs* makes the model compute.

    Where *padded*, its longest pair times their number; else what is their own, and each prefix
    among them once.
    """
    if padded:
        return max((pair.own + pair.prefix_tokens for pair in pairs), default=0) * len(pairs)
    prefixes = {pair.prefix: pair.prefix_tokens for pair in pairs}
    return sum(pair.own for pair in pairs) + sum(prefixes.values())


GROW_AFTER: Final = 8
"""Full batches that go well before a budget that was cut grows: one might be luck, and a failed
pass costs as much as a good one."""

GROWTH: Final = 1.1
"""How much it grows at a time: what took the memory may still hold most of it."""

FULL: Final = 0.75
"""The part of its budget from which a batch shows that the budget fits into memory."""


class Budget:
    """Tokens that a batch may cost: less after one did not fit into memory, growing back slowly."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._good = 0
        self.tokens = tokens

    def cut(self, cost: int) -> None:
        """Remember that a batch of *cost* tokens did not fit."""
        self.tokens = max(1, min(self.tokens, cost // 2))
        self._good = 0

    def fitted(self, cost: int) -> None:
        """Remember that a batch of *cost* tokens did."""
        if self.tokens == self._most or cost < FULL * self.tokens:
            return
        self._good += 1
        if self._good >= GROW_AFTER:
            self._good = 0
            self.tokens = min(self._most, ceil(self.tokens * GROWTH))


def queued_tokens(pairs: Iterable[Load], *, padded: bool) -> int:
    """Tokens that *pairs* add up to in a queue."""
    counted = WaitingTokens(padded=padded)
    counted.add(pairs)
    return counted.total


class WaitingTokens:
    """Counts the tokens of pairs that wait: a prefix that is shared once, however many share it.

    Where batches are *padded*, each pair counts with its prefix. ``total`` is how many they are.
    """

    def __init__(self, *, padded: bool) -> None:
        self.total = 0
        self._padded = padded
        self._prefixes: dict[bytes, tuple[int, int]] = {}  # pairs, and tokens of the prefix

    def add(self, pairs: Iterable[Load]) -> None:
        """Count *pairs*, which wait from now on."""
        for pair in pairs:
            prefix, length = batch_order(pair, padded=self._padded)
            self.total += length
            if not prefix:
                continue
            count, tokens = self._prefixes.get(prefix, (0, pair.prefix_tokens))
            self._prefixes[prefix] = count + 1, tokens
            self.total += 0 if count else tokens

    def remove(self, pairs: Iterable[Load]) -> None:
        """Leave out *pairs*, which were added before."""
        for pair in pairs:
            prefix, length = batch_order(pair, padded=self._padded)
            self.total -= length
            if not prefix:
                continue
            count, tokens = self._prefixes.pop(prefix)
            if count > 1:
                self._prefixes[prefix] = count - 1, tokens
            else:
                self.total -= tokens
