"""What waits in the queue is counted, however it leaves it."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import ClosedError, QueueFullError, Reranker, ScoringError
from rerank_plugins.testing import FakePair, FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

QUERY_TOKENS = 1000


class Query:
    """What pairs of one query begin with."""

    tokens = QUERY_TOKENS

    def __init__(self, query: str) -> None:
        self.key = query.encode()


class Pair(FakePair):
    """A pair of one token of its own, behind a long query."""

    @property
    def prefix(self) -> Query:
        return Query(self.query)


class Gated(FakeScorer):
    """Shares queries; a batch goes through while the gate is open."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(padded=False, **settings)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def encode(self, query: str, documents: Sequence[str], **_: Any) -> Any:
        own = 1 + QUERY_TOKENS
        return [Pair(query, document, own, truncated=False) for document in documents]

    def forward(self, pairs: Any) -> list[float]:
        self.entered.set()
        assert self.gate.wait(30)
        return super().forward(pairs)


@pytest.fixture
def scorer() -> Iterator[Gated]:
    """A scorer whose gate opens at the latest when the test ends."""
    scorer = Gated(poison="poison", batch_tokens=3)
    yield scorer
    scorer.gate.set()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def waiting(reranker: Reranker) -> int:
    return reranker.stats()["fake"].tokens_waiting


async def _busy(reranker: Reranker, scorer: Gated) -> asyncio.Task[Any]:
    task = asyncio.create_task(reranker.arank("first", ["d"]))
    await _until(scorer.entered.is_set)
    return task


async def _fill(reranker: Reranker, query: str, documents: list[str]) -> asyncio.Task[Any]:
    """Ask, and return once the documents wait."""
    before = waiting(reranker)
    task = asyncio.create_task(reranker.arank(query, documents))
    await _until(lambda: waiting(reranker) >= before + len(documents))
    return task


async def test_documents_of_a_long_query_do_not_fill_the_queue(scorer: Gated) -> None:
    with Reranker(scorer, queue_tokens=QUERY_TOKENS + 50) as reranker:
        first = await _busy(reranker, scorer)
        tasks = [await _fill(reranker, "q", [f"{n} {i}" for i in range(20)]) for n in range(2)]
        assert waiting(reranker) == QUERY_TOKENS + 40

        tasks.append(await _fill(reranker, "q", [f"2 {i}" for i in range(20)]))
        with pytest.raises(QueueFullError, match=f"{QUERY_TOKENS + 60} tokens are waiting"):
            await reranker.arank("q", ["too much"])
        scorer.gate.set()
        await asyncio.gather(first, *tasks)

        assert waiting(reranker) == 0


async def test_a_query_counts_as_long_as_one_of_its_documents_waits(scorer: Gated) -> None:
    with Reranker(scorer, queue_tokens=2 * QUERY_TOKENS + 9) as reranker:
        first = await _busy(reranker, scorer)
        gone = [await _fill(reranker, "q", ["a"]), await _fill(reranker, "other", ["a", "b"])]
        kept = await _fill(reranker, "q", ["b", *[str(i) for i in range(10)]])
        assert waiting(reranker) == 2 * QUERY_TOKENS + 14
        for task in gone:
            task.cancel()

        # A full queue looks for what nobody wants any more.
        late = await _fill_when_full(reranker)

        assert waiting(reranker) == 2 * QUERY_TOKENS + 12
        scorer.gate.set()
        await asyncio.gather(first, kept, late)
        assert waiting(reranker) == 0


async def _fill_when_full(reranker: Reranker) -> asyncio.Task[Any]:
    await asyncio.sleep(0)
    task = asyncio.create_task(reranker.arank("late", ["x"]))
    await _until(lambda: task.done() or reranker.stats()["fake"].pairs_dropped == 3)
    await _until(lambda: task.done() or waiting(reranker) > QUERY_TOKENS + 11)
    return task


@pytest.mark.parametrize("seed", range(4))
async def test_cancelled_and_failing_requests_leave_no_tokens(seed: int, scorer: Gated) -> None:
    chance = random.Random(seed)
    with Reranker(scorer, cache_entries=0, queue_tokens=3 * QUERY_TOKENS) as reranker:
        first = await _busy(reranker, scorer)
        tasks = []
        for number in range(30):
            documents = [f"{number} {i}" for i in range(chance.randrange(1, 5))]
            documents += ["poison"] if chance.random() < 0.2 else []
            query = f"q{chance.randrange(4)}"
            tasks.append(asyncio.create_task(reranker.arank(query, documents)))
            await asyncio.sleep(0.001)
            if number == 15:
                scorer.gate.set()
            if chance.random() < 0.4:
                chance.choice(tasks).cancel()
            assert waiting(reranker) >= 0
        outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)

        kinds = {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)}
        assert kinds <= {asyncio.CancelledError, ScoringError, QueueFullError}
        await _until(lambda: waiting(reranker) == 0)


async def test_closing_leaves_no_tokens(scorer: Gated) -> None:
    reranker = Reranker(scorer)
    first = await _busy(reranker, scorer)
    task = await _fill(reranker, "q", ["a", "b"])
    opened = reranker._leases.primary._opened()

    closing = asyncio.create_task(asyncio.to_thread(reranker.close))
    with pytest.raises(ClosedError):
        await task
    scorer.gate.set()
    await closing
    await asyncio.gather(first, return_exceptions=True)

    assert opened[1].queue.tokens == 0
