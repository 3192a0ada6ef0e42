"""A scorer that fails in every way there is, and keeps a journal of what it did to whom."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rerank_plugins import ModelLoadError
from rerank_plugins.testing import FakePair, FakeScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

INSTRUCTION = "answer"


class Pair(NamedTuple):
    """What a logit depends on: it is a function of these four, and shows any swap."""

    model: str
    instruction: str
    query: str
    document: str

    @property
    def logit(self) -> float:
        return float(zlib.crc32("|".join(self).encode()) % 99_991)

    @property
    def poisoned(self) -> bool:
        """Whether it can never be answered."""
        return self.document.startswith(("poison", "nan"))


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what happens in a forward pass; a stall lasts *stall_s*."""

    exception: float = 0.02
    nan: float = 0.01
    kill: float = 0.01
    stall: float = 0.002
    stall_s: float = 5.0
    change_room: float = 0.02
    load: float = 0.1


class Journal:
    """What was done on purpose, by number, so that each failure can be told from a fault of ours.

    A number alone could be anybody's: whom it may reach is written down with it.
    """

    def __init__(self, seed: int, rates: Rates) -> None:
        self.rates = rates
        self.done: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._number = 0
        self._alone: dict[int, Pair] = {}
        self._killed: dict[int, frozenset[Pair]] = {}
        self._deaths: Counter[Pair] = Counter()
        self._loads: dict[int, str] = {}
        self._no_number: set[Pair] = set()

    def happens(self, what: str) -> bool:
        """Whether *what* happens now."""
        with self._lock:
            now = self._chance.random() < getattr(self.rates, what)
            self.done[what] += now
            return now

    def pick(self, choices: Sequence[int]) -> int:
        with self._lock:
            return self._chance.choice(choices)

    def exception(self, pairs: Sequence[Pair]) -> str:
        """A batch of one fails with it; a larger one is tried again in parts, and none does."""
        with self._lock:
            self._number += 1
            if len(pairs) == 1:
                self._alone[self._number] = pairs[0]
            return f"fault {self._number}"

    def kill(self, pairs: Sequence[Pair]) -> str:
        """What dies twice with a worker fails."""
        with self._lock:
            self._number += 1
            self._killed[self._number] = frozenset(pairs)
            self._deaths.update(pairs)
            return f"fault {self._number}"

    def load(self, model: str) -> str:
        """Reaches whoever asks for the model, and whoever waits for its last worker."""
        with self._lock:
            self._number += 1
            self._loads[self._number] = model
            return f"fault {self._number}"

    def no_number(self, pair: Pair) -> None:
        with self._lock:
            self._no_number.add(pair)

    def explains(self, number: int, pair: Pair) -> bool:
        """Whether fault *number* may fail the request of *pair*."""
        with self._lock:
            twice = pair in self._killed.get(number, ()) and self._deaths[pair] > 1
            return twice or pair == self._alone.get(number) or pair.model == self._loads.get(number)

    def explains_load(self, number: int, model: str) -> bool:
        with self._lock:
            return self._loads.get(number) == model

    def loads_failed(self, model: str) -> bool:
        with self._lock:
            return model in self._loads.values()

    def explains_no_number(self, pair: Pair) -> bool:
        with self._lock:
            return pair.document.startswith("nan") or pair in self._no_number


class ChaosScorer(FakeScorer):
    """Gives each pair its own logit, unless the journal has it otherwise."""

    def __init__(self, model: str, journal: Journal) -> None:
        if journal.happens("load"):
            raise ModelLoadError(model, journal.load(model))
        super().__init__(name=model, batch_tokens=16, activation="logit", instruction=INSTRUCTION)
        self._journal = journal
        self._room = 1000

    def forward(self, pairs: Sequence[FakePair]) -> list[float]:
        """Score a batch, or not."""
        if not self._entered.acquire(blocking=False):
            raise AssertionError("two threads entered the scorer at once")
        try:
            if self.closed:
                raise AssertionError("a closed scorer was asked")
            return self._forward([self._pair(pair) for pair in pairs])
        finally:
            self._entered.release()

    def _pair(self, pair: FakePair) -> Pair:
        instruction, _, query = pair.query.partition(": ")
        return Pair(self.name, instruction, query, pair.document)

    def _forward(self, pairs: Sequence[Pair]) -> list[float]:
        journal = self._journal
        time.sleep(0.0002 * len(pairs))
        if journal.happens("stall"):
            time.sleep(journal.rates.stall_s)
        if journal.happens("change_room"):
            self._room = journal.pick([1, 2, 4, 1000])
        if len(pairs) > self._room:
            raise MemoryError(journal.exception(pairs))
        for pair in pairs:
            if pair.document.startswith("poison"):
                raise RuntimeError(pair.document)
        if journal.happens("exception"):
            raise RuntimeError(journal.exception(pairs))
        if journal.happens("kill"):
            raise SystemExit(journal.kill(pairs))
        logits = [float("nan") if pair.document.startswith("nan") else pair.logit for pair in pairs]
        if journal.happens("nan"):
            unlucky = journal.pick(range(len(pairs)))
            logits[unlucky] = float("nan")
            journal.no_number(pairs[unlucky])
        return logits
