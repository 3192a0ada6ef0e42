"""Many callers at once: threads, tasks, cancellations, deadlines, closing."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import (
    ClosedError,
    QueueFullError,
    Reranker,
    RerankTimeoutError,
    ScoringError,
)
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Opener = Callable[..., tuple[Reranker, FakeScorer]]

DOCUMENTS = [f"w{i} w{i * 7 % 31} w{i * 3 % 17}" for i in range(40)]
QUERIES = [f"w{i} w{i + 1}" for i in range(12)]


class GatedScorer(FakeScorer):
    """Waits at a gate in each forward pass, so that a test decides who is queued meanwhile."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def forward(self, pairs: Sequence[Any]) -> list[float]:
        self.entered.set()
        assert self.gate.wait(30)
        return super().forward(pairs)


@pytest.fixture
def gated() -> Any:
    scorer = GatedScorer()
    with Reranker(scorer) as reranker:
        yield reranker, scorer
        scorer.gate.set()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_threads_and_tasks_get_the_serial_scores_and_each_pair_is_scored_once(
    open_reranker: Opener,
) -> None:
    serial, _ = open_reranker()
    expected = {query: serial.rank(query, DOCUMENTS).documents for query in QUERIES}
    # Two threads inside the scorer at once make FakeScorer raise.
    reranker, scorer = open_reranker(FakeScorer(delay_s=0.001))

    def by_thread(offset: int) -> None:
        for i in range(len(QUERIES)):
            query = QUERIES[(i + offset) % len(QUERIES)]
            found = reranker.rank(query, DOCUMENTS)
            assert [(d.index, d.logit) for d in found] == [
                (d.index, d.logit) for d in expected[query]
            ]

    async def by_task(offset: int) -> None:
        query = QUERIES[offset % len(QUERIES)]
        found = await reranker.arank(query, DOCUMENTS)
        assert [(d.index, d.logit) for d in found] == [(d.index, d.logit) for d in expected[query]]

    with ThreadPoolExecutor(8) as threads:
        running = [asyncio.wrap_future(threads.submit(by_thread, i)) for i in range(8)]
        await asyncio.gather(*running, *(by_task(i) for i in range(200)))

    assert set(scorer.pairs_scored.values()) == {1}
    assert len(scorer.pairs_scored) == len(QUERIES) * len(set(DOCUMENTS))


async def test_requests_that_wait_together_share_forward_passes(gated: Any) -> None:
    reranker, scorer = gated
    first = asyncio.create_task(reranker.arank("q", ["first"]))
    await _until(scorer.entered.is_set)

    others = [asyncio.create_task(reranker.arank(f"q{i}", ["x"])) for i in range(50)]
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 50)
    scorer.gate.set()
    await asyncio.gather(first, *others)

    assert [len(batch) for batch in scorer.batches] == [1, 50]


async def test_the_event_loop_runs_while_the_scorer_works(gated: Any) -> None:
    reranker, scorer = gated
    task = asyncio.create_task(reranker.arank("q", ["x"]))
    await _until(scorer.entered.is_set)

    # The scorer stands at its gate: had it been entered on the loop, nothing would move here.
    for _ in range(100):
        await asyncio.sleep(0)
    assert not task.done()
    scorer.gate.set()
    assert len(await task) == 1


async def test_cleaning_and_encoding_leave_the_event_loop_alone(open_reranker: Opener) -> None:
    loop_thread = threading.get_ident()
    seen = set()

    class Watched(FakeScorer):
        def encode(self, query: str, documents: Any) -> Any:
            seen.add(("encode", threading.get_ident()))
            return super().encode(query, documents)

    def watched(text: str) -> str:
        seen.add(("normalise", threading.get_ident()))
        return text

    reranker, _ = open_reranker(Watched(), normalizer=watched)
    await reranker.arank("q", ["x"])

    assert {step for step, _ in seen} == {"encode", "normalise"}
    assert loop_thread not in {thread for _, thread in seen}


async def test_a_cancelled_request_is_dropped_and_delays_nobody(gated: Any) -> None:
    reranker, scorer = gated
    first = asyncio.create_task(reranker.arank("q", ["first"]))
    await _until(scorer.entered.is_set)
    doomed = asyncio.create_task(reranker.arank("doomed", [f"d{i}" for i in range(500)]))
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 500)
    kept = asyncio.create_task(reranker.arank("kept", ["x"]))
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 501)

    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    scorer.gate.set()
    await asyncio.gather(first, kept)

    assert [query for batch in scorer.batches for query, _ in batch] == ["q", "kept"]
    assert reranker.stats()["fake"].pairs_dropped == 500


async def test_cancelling_one_of_two_who_wait_for_a_pair_does_not_harm_the_other(
    gated: Any,
) -> None:
    reranker, scorer = gated
    first = asyncio.create_task(reranker.arank("q", ["first"]))
    await _until(scorer.entered.is_set)
    owner = asyncio.create_task(reranker.arank("same", ["pair"]))
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 1)
    joined = asyncio.create_task(reranker.arank("same", ["pair"]))
    await _until(lambda: reranker.stats()["fake"].pairs_joined == 1)

    owner.cancel()
    await asyncio.sleep(0)
    scorer.gate.set()

    assert len(await joined) == 1
    await first


async def test_a_bad_document_fails_its_own_request_among_many(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(FakeScorer(poison="bad", delay_s=0.001))

    answers = await asyncio.gather(
        *(reranker.arank(f"q{i}", ["a", "bad" if i % 10 == 3 else "b", "c"]) for i in range(60)),
        return_exceptions=True,
    )

    for i, answer in enumerate(answers):
        if i % 10 == 3:
            assert isinstance(answer, ScoringError)
            assert "documents[1]" in str(answer)
        else:
            assert not isinstance(answer, BaseException)
            assert len(answer) == 3


def test_a_deadline_ends_the_wait_and_the_pairs_leave_the_queue(gated: Any) -> None:
    reranker, scorer = gated
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(reranker.rank, "q", ["first"])
        assert scorer.entered.wait(20)

        with pytest.raises(RerankTimeoutError, match=r"timeout_s=0\.01"):
            reranker.rank("late", ["x"], timeout_s=0.01)
        with pytest.raises(TimeoutError):
            asyncio.run(reranker.arank("late", ["x", "y"], timeout_s=0.01))
        scorer.gate.set()
        first.result(20)

    assert len(reranker.rank("q", ["after"])) == 1
    assert {query for query, _ in scorer.pairs_scored} == {"q"}


def test_a_full_queue_refuses_new_requests_and_serves_the_cache(no_leaks: None) -> None:
    scorer = GatedScorer()
    with Reranker(scorer, queue_tokens=10) as reranker, ThreadPoolExecutor(2) as threads:
        scorer.gate.set()
        reranker.rank("q", ["known"])
        scorer.gate.clear()
        scorer.entered.clear()
        running = threads.submit(reranker.rank, "q", ["running"])
        assert scorer.entered.wait(20)
        waiting = threads.submit(reranker.rank, "q", ["w " * 12])
        while reranker.stats()["fake"].tokens_waiting < 12:
            time.sleep(0.001)

        with pytest.raises(QueueFullError, match="queue_tokens is 10") as refused:
            reranker.rank("q", ["new"])
        assert refused.value.retry_after_s > 0
        assert reranker.rank("q", ["known"])[0].cached

        scorer.gate.set()
        running.result(20)
        waiting.result(20)
        assert len(reranker.rank("q", ["new"])) == 1


def test_a_large_request_streams_through_a_small_queue(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(queue_tokens=100, batch_tokens=32)

    ranking = reranker.rank("w3", [f"w{i}" for i in range(2000)])

    assert len(ranking) == 2000
    assert ranking[0].index == 3
    assert len(scorer.batches) > 10


def test_the_scorer_works_while_a_large_request_is_still_being_encoded(
    open_reranker: Opener,
) -> None:
    order = []

    class Watched(FakeScorer):
        def encode(self, query: str, documents: Any) -> Any:
            order.append("encode")
            if order.count("encode") == 3:
                # The third chunk waits for the first forward pass, as a slow tokenizer would.
                assert forward.wait(20)
            return super().encode(query, documents)

        def forward(self, pairs: Any) -> list[float]:
            forward.set()
            return super().forward(pairs)

    forward = threading.Event()
    reranker, _ = open_reranker(Watched())

    assert len(reranker.rank("q", [f"w{i}" for i in range(500)])) == 500


async def test_closing_ends_running_and_waiting_calls_with_an_error(no_leaks: None) -> None:
    scorer = GatedScorer()
    reranker = Reranker(scorer)
    running = asyncio.create_task(reranker.arank("q", ["running"]))
    await _until(scorer.entered.is_set)
    waiting = asyncio.create_task(reranker.arank("q", ["waiting"]))
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 1)

    closing = asyncio.create_task(reranker.aclose())
    with pytest.raises(ClosedError, match="closed during the call"):
        await waiting
    scorer.gate.set()
    await closing

    assert len(await running) == 1
    assert scorer.closed
    with pytest.raises(ClosedError):
        await reranker.arank("q", ["x"])


def test_event_loops_may_come_and_go(open_reranker: Opener) -> None:
    reranker, _ = open_reranker()

    for i in range(5):
        assert len(asyncio.run(reranker.arank(f"q{i}", ["a", "b"]))) == 2


def test_a_loop_that_dies_with_a_request_under_way_harms_nobody(gated: Any) -> None:
    reranker, scorer = gated

    async def abandon() -> None:
        task = asyncio.create_task(reranker.arank("abandoned", ["x"]))
        await _until(scorer.entered.is_set)
        del task

    asyncio.run(abandon())
    scorer.gate.set()

    assert len(reranker.rank("q", ["after"])) == 1


async def test_context_variables_reach_the_plug_ins(open_reranker: Opener) -> None:
    import contextvars

    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen = []

    def hook(text: str, language: str | None, role: str) -> str:
        seen.append(tenant.get())
        return text

    reranker, _ = open_reranker(text_hook=hook)
    tenant.set("acme")
    await reranker.arank("q", ["a"])

    assert seen == ["acme", "acme"]


async def test_the_async_context_manager_closes(no_leaks: None) -> None:
    scorer = FakeScorer()
    async with Reranker(scorer) as reranker:
        assert await reranker.ascore([("a", "a"), ("a", "")]) == [pytest.approx(0.731, abs=1e-3), 0]
    assert scorer.closed
