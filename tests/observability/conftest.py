"""An observer that remembers, and a scorer that waits to be let through."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import BatchEvent, LoadEvent, Observer, RequestEvent, SwitchEvent
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rerank_plugins import Reranker
    from rerank_plugins.results import EngineStats

Event = LoadEvent | BatchEvent | RequestEvent | SwitchEvent


class Seen(Observer):
    """Remembers every event, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_load(self, event: LoadEvent) -> None:
        self.events.append(event)

    def on_batch(self, event: BatchEvent) -> None:
        self.events.append(event)

    def on_request(self, event: RequestEvent) -> None:
        self.events.append(event)

    def on_switch(self, event: SwitchEvent) -> None:
        self.events.append(event)

    @property
    def loads(self) -> list[LoadEvent]:
        return [event for event in self.events if isinstance(event, LoadEvent)]

    @property
    def batches(self) -> list[BatchEvent]:
        return [event for event in self.events if isinstance(event, BatchEvent)]

    @property
    def requests(self) -> list[RequestEvent]:
        return [event for event in self.events if isinstance(event, RequestEvent)]


class Gated(FakeScorer):
    """A batch goes through while the gate is open; ``entered`` says that one came that far."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def forward(self, pairs: Sequence[Any]) -> list[float]:
        self.entered.set()
        assert self.gate.wait(30)
        return super().forward(pairs)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def gated(open_reranker: object) -> Iterator[Gated]:
    """A scorer whose gate opens at the latest when the test ends, before its reranker is closed."""
    scorer = Gated()
    yield scorer
    scorer.gate.set()


@pytest.fixture
def rank_behind(gated: Gated) -> Callable[..., None]:
    """Rank a document, then another while the first is scored, and let both through after a pause.

    The pause begins once *there* sees in the engine's counters that the second has come.
    """

    def rank(
        reranker: Reranker,
        first: str,
        second: str,
        *,
        pause_s: float,
        there: Callable[[EngineStats], object],
    ) -> None:
        threads = [
            threading.Thread(target=reranker.rank, args=("red fox", [document]))
            for document in (first, second)
        ]
        threads[0].start()
        assert gated.entered.wait(30)
        threads[1].start()
        while not there(reranker.stats()["fake"]):
            time.sleep(0.001)
        time.sleep(pause_s)
        gated.gate.set()
        for thread in threads:
            thread.join(30)

    return rank
