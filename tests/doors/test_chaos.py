"""Seeded disorder: nothing hangs, is lost, is swapped or is left behind."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import QueueFullError, Reranker, RerankTimeoutError, ScoringError
from rerank_plugins.testing import FakeScorer
from tests import chaos

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins import Ranking

EXPECTED = (QueueFullError, RerankTimeoutError, ScoringError)


def _logit(query: str, document: str) -> float:
    return float(zlib.crc32(f"{query}|{document}".encode()) % 1000)


class Jittery(FakeScorer):
    """Takes up to two milliseconds, and fails on poison."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(_logit, batch_tokens=chance.choice([8, 64, 512]), poison="bad")
        self._chance = chance

    def forward(self, pairs: Any) -> list[float]:
        time.sleep(self._chance.random() * 0.002)
        return super().forward(pairs)


class Callers:
    """Three threads and three event loops that ask, give up, run late and check what they get."""

    def __init__(self, reranker: Reranker, seed: int) -> None:
        self._reranker = reranker
        self._seed = seed
        self.answered = 0
        self.wrong: list[object] = []

    def run(self) -> list[str]:
        """Return the names of threads that did not end."""
        threads = [
            threading.Thread(target=ask, args=(i,), daemon=True, name=f"{ask.__name__} {i}")
            for i in range(3)
            for ask in (self._by_thread, self._by_loop)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        return [thread.name for thread in threads if thread.is_alive()]

    def _request(self, chance: random.Random) -> tuple[str, list[str], float | None]:
        documents = [
            ("bad" if chance.random() < 0.003 else "")
            + f"d{chance.randrange(300)} x"[: chance.choice([3, 6])]
            for _ in range(chance.choice([0, 1, 3, 200]))
        ]
        return f"q{chance.randrange(4)}", documents, chance.choice([None, None, 0.001, 0.02])

    def _check(self, query: str, documents: list[str], found: Ranking) -> None:
        self.answered += 1
        if sorted(d.index for d in found) != list(range(len(documents))):
            self.wrong.append((query, "documents lost"))
        for d in found:
            if d.text != documents[d.index] or d.logit != _logit(query, d.text):
                self.wrong.append((query, d))

    def _by_thread(self, number: int) -> None:
        chance = random.Random(self._seed * 100 + number)
        for _ in range(15):
            query, documents, timeout_s = self._request(chance)
            try:
                self._check(
                    query, documents, self._reranker.rank(query, documents, timeout_s=timeout_s)
                )
            except EXPECTED:
                continue

    def _by_loop(self, number: int) -> None:
        asyncio.run(self._tasks(random.Random(self._seed * 100 + 50 + number)))

    async def _tasks(self, chance: random.Random) -> None:
        async def one() -> None:
            query, documents, timeout_s = self._request(chance)
            found = await self._reranker.arank(query, documents, timeout_s=timeout_s)
            self._check(query, documents, found)

        tasks = [asyncio.create_task(one()) for _ in range(25)]
        for _ in tasks:
            await asyncio.sleep(chance.random() * 0.003)
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if outcome is not None and not isinstance(outcome, (*EXPECTED, asyncio.CancelledError)):
                self.wrong.append(outcome)


def _eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("queue_tokens", [60, 1_000_000])
@pytest.mark.parametrize("seed", range(4))
def test_disorder(no_leaks: None, seed: int, queue_tokens: int) -> None:
    chance = random.Random(seed)
    reranker = Reranker(
        Jittery(chance),
        queue_tokens=queue_tokens,
        cache_entries=chance.choice([0, 5, 1000]),
        language_detector=None,
        normalizer=None,
    )
    callers = Callers(reranker, seed)

    hung = callers.run()

    assert hung == []
    assert callers.wrong == []
    assert callers.answered > 0
    assert _eventually(lambda: not reranker._leases.primary._cache._tickets)
    assert _eventually(lambda: reranker.stats()["fake"].tokens_waiting == 0)
    reranker.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_minute_of_faults_wrongs_nobody_and_leaves_nothing_behind(no_leaks: None) -> None:
    """`benchmarks/chaos.py` is the same for longer."""
    report = chaos.run(seed=5, seconds=60, stall_s=0.5, hang_s=30)

    assert report.faultless, report
    # All that could happen did.
    assert {"answered", "ScoringError", "QueueFullError", "RerankTimeoutError"} <= set(
        report.outcomes
    )
    assert all(report.faults.values())
    assert report.outcomes["answered"] > 500
