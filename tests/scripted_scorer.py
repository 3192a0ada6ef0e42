"""A scorer that enters each forward pass only as far as a test lets it."""

from __future__ import annotations

import queue
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from rerank_plugins.models.windows import WindowedPair
from rerank_plugins.options import WindowScore
from rerank_plugins.testing import FakePair, FakeScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOWS = 3
HANG_S = 30
"""What no step takes: who waits longer hangs."""


class Key(NamedTuple):
    """What makes a pair one and not another."""

    query: str
    document: str


def truth(query: str, document: str) -> float:
    """Return the logit of a pair, which depends on it alone; a document in windows has the best."""
    return max(_logit(query, text) for text in window_texts(document) or [document])


def _logit(query: str, text: str) -> float:
    return float(zlib.crc32(f"{query}|{text}".encode()) % 9973)


def window_texts(document: str) -> list[str]:
    """Return the windows of a document that is called long, none of any other."""
    return [f"{document}#{i}" for i in range(WINDOWS)] if document.startswith("long") else []


def whole(pair: FakePair) -> Key:
    """Return the pair that a piece belongs to."""
    return Key(pair.query, pair.document.partition("#")[0])


class ScriptedScorer(FakeScorer):
    """Tells of each forward pass in `entered`, and does there what comes from `orders`.

    An order is None, an exception to raise, or a function of the logits. Documents that hold
    "poison" make a pass raise, "nan" ones are no number, "unreadable" ones cannot be encoded, and
    more than ``room`` pairs are out of memory.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(_logit, poison="poison", **settings)
        self.entered: queue.SimpleQueue[list[FakePair]] = queue.SimpleQueue()
        self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.room = 1000

    def encode(self, query: str, documents: Sequence[str], **options: Any) -> list[Any]:
        if any("unreadable" in document for document in documents):
            raise ValueError("unreadable")
        encoded = super().encode(query, documents, **options)
        return [self._in_windows(pair) for pair in encoded]

    def _in_windows(self, pair: FakePair) -> FakePair | WindowedPair[FakePair]:
        texts = window_texts(pair.document)
        if not texts:
            return pair
        windows = tuple(FakePair(pair.query, text, 1, truncated=False) for text in texts)
        return WindowedPair(windows, ((0, 1),) * WINDOWS, WindowScore.MAX)

    def forward(self, pairs: Sequence[FakePair]) -> Any:
        self.entered.put(list(pairs))
        order = self.orders.get(timeout=2 * HANG_S)
        if isinstance(order, BaseException):
            raise order
        if len(pairs) > self.room:
            raise MemoryError(f"{len(pairs)} pairs")
        logits = super().forward(pairs)
        logits = [
            float("nan") if "nan" in pair.document else logit
            for pair, logit in zip(pairs, logits, strict=True)
        ]
        return logits if order is None else order(logits)
