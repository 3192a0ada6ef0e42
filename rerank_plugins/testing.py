"""Test doubles for programs that use a reranker: no model, no download, exact answers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class FakePair:
    """A pair as `FakeScorer` wants it: the texts, with words for tokens."""

    query: str
    document: str
    tokens: int
    truncated: bool


class FakeScorer:
    """A scorer whose logit is the number of query words that a document holds.

    *logit* replaces that rule with a function of (query, document). *delay_s* is slept in each
    forward pass. Documents longer than *max_words* are cut and marked. A document that contains
    *poison* makes the forward pass raise. One that is given an *instruction* takes others too, and
    puts them before the query, as in "find facts: red fox". What was asked of it is kept in
    ``batches`` (a list of lists of pairs) and ``pairs_scored`` (a count by pair).
    """

    def __init__(
        self,
        logit: Callable[[str, str], float] | None = None,
        *,
        name: str = "fake",
        delay_s: float = 0.0,
        max_words: int = 512,
        poison: str | None = None,
        languages: frozenset[str] | None = None,
        batch_tokens: int = 2048,
        padded: bool = True,
        activation: Literal["sigmoid", "logit"] = "sigmoid",
        instruction: str | None = None,
    ) -> None:
        self.name = name
        self.languages = languages
        self.batch_tokens = batch_tokens
        self.padded = padded
        self.activation = activation
        self.instruction = instruction
        self.batches: list[list[tuple[str, str]]] = []
        self.pairs_scored: Counter[tuple[str, str]] = Counter()
        self.closed = False
        self._logit = logit or _shared_words
        self._delay_s = delay_s
        self._max_words = max_words
        self._poison = poison
        self._entered = threading.Lock()

    @property
    def identity(self) -> str:
        """Name, limit and instruction: what changes a logit here."""
        told = "" if self.instruction is None else f" told {self.instruction}"
        return f"{self.name}@{self._max_words}{told}"

    def encode(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> list[FakePair]:
        """Cut each document to ``max_words`` words."""
        if (instruction := instruction or self.instruction) is not None:
            query = f"{instruction}: {query}"
        pairs = []
        for document in documents:
            words = document.split()
            cut = len(words) > self._max_words
            text = " ".join(words[: self._max_words]) if cut else document
            pairs.append(FakePair(query, text, max(1, min(len(words), self._max_words)), cut))
        return pairs

    def forward(self, pairs: Sequence[FakePair]) -> list[float]:
        """Score a batch; raises RuntimeError on poison, or if two threads are inside at once."""
        if not self._entered.acquire(blocking=False):
            raise RuntimeError("two threads entered the scorer at once")
        try:
            if self._delay_s:
                time.sleep(self._delay_s)
            if self._poison is not None and any(self._poison in p.document for p in pairs):
                raise RuntimeError(f"a document holds {self._poison!r}")
            self.batches.append([(pair.query, pair.document) for pair in pairs])
            self.pairs_scored.update(self.batches[-1])
            return [self._logit(pair.query, pair.document) for pair in pairs]
        finally:
            self._entered.release()

    def close(self) -> None:
        """Remember that it happened."""
        self.closed = True


def _shared_words(query: str, document: str) -> float:
    return float(len(set(query.lower().split()) & set(document.lower().split())))
