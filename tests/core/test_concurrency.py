"""Many callers at once: threads, tasks, cancellations, deadlines, closing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import (
    ClosedError,
    ConfigError,
    InputError,
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_ranks_with_the_rerankers_of_its_parent(open_reranker: Opener) -> None:
    reranker, _scorer = open_reranker()
    reranker.rank("a", ["a", "b"])

    child = os.fork()
    if child == 0:
        # Whatever happens, the child must not go on as a second test run.
        status = 1
        with contextlib.suppress(BaseException):
            found = reranker.rank("a b", ["a", "a b"], timeout_s=20)
            also = asyncio.run(reranker.arank("b", ["a b", "a"], timeout_s=20))
            status = 0 if (found[0].index, also[0].index) == (1, 0) else 2
        os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reranker.rank("a", ["a"])[0].cached


def test_a_streaming_request_that_fails_wakes_from_waiting_for_room(
    open_reranker: Opener,
) -> None:
    scorer = FakeScorer(poison="bad", delay_s=0.005, batch_tokens=64)
    reranker, _ = open_reranker(scorer, queue_tokens=100, cache_entries=0)
    documents = [f"d{i} x y z" for i in range(400)]
    documents[5] = "bad d x y"

    with pytest.raises(ScoringError, match=r"documents\[5\]"):
        reranker.rank("q", documents, timeout_s=60)
    # Whatever else it queued is dropped before the next request is scored.
    assert len(reranker.rank("q", ["after"], timeout_s=20)) == 1
    assert reranker.stats()["fake"].tokens_waiting == 0


def test_many_queries_of_one_call_do_not_fill_the_queue_for_themselves(
    open_reranker: Opener,
) -> None:
    reranker, _ = open_reranker(queue_tokens=50, activation="logit")

    scores = reranker.score([(f"q{i}", f"q{i} x y z") for i in range(300)])

    assert scores == [1.0] * 300
    assert reranker.stats()["fake"].requests == 1


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
def test_the_worker_outlives_whatever_a_scorer_raises(
    open_reranker: Opener, error: type[BaseException]
) -> None:
    class Rude(FakeScorer):
        def forward(self, pairs: Any) -> list[float]:
            if any(pair.document == "rude" for pair in pairs):
                raise error
            return super().forward(pairs)

    reranker, _ = open_reranker(Rude())

    with pytest.raises(ScoringError, match=error.__name__):
        reranker.rank("q", ["a", "rude"], timeout_s=20)
    assert len(reranker.rank("q", ["a", "b"], timeout_s=20)) == 2


def test_a_pair_that_breaks_late_fails_its_own_request(open_reranker: Opener) -> None:
    class Late(FakeScorer):
        def encode(self, query: str, documents: Any) -> Any:
            return [
                BrokenPair() if d == "late" else p
                for d, p in zip(documents, super().encode(query, documents), strict=True)
            ]

    class BrokenPair:
        tokens = 1

        @property
        def truncated(self) -> bool:
            raise OSError("gone")

    reranker, _ = open_reranker(Late())

    with pytest.raises(ScoringError, match=r"could not encode documents\[1\]: OSError: gone"):
        reranker.rank("q", ["a", "late"], timeout_s=20)
    assert len(reranker.rank("q", ["a"], timeout_s=20)) == 1


def test_a_thread_that_cannot_start_fails_the_call_and_not_the_next(
    open_reranker: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker, _ = open_reranker()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ScoringError, match="can't start new thread") as failed:
        reranker.rank("q", ["a", "b"], timeout_s=20)
    assert failed.value.retryable
    monkeypatch.setattr(threading.Thread, "start", start)

    assert len(reranker.rank("q", ["a", "b"], timeout_s=20)) == 2
    assert reranker.stats()["fake"].tokens_waiting == 0


def test_a_request_that_has_failed_is_not_scored_to_its_end(open_reranker: Opener) -> None:
    passes = []

    class Broken(FakeScorer):
        def forward(self, pairs: Any) -> list[float]:
            passes.append(len(pairs))
            raise RuntimeError("the device is gone")

    reranker, _ = open_reranker(Broken())

    with pytest.raises(ScoringError, match="the device is gone") as failed:
        reranker.rank("q", [f"d{i}" for i in range(512)], timeout_s=20)
    assert len(reranker.stats()) == 1
    # Halved down to the first pair; what is left has nobody who waits for it.
    assert len(passes) <= 20
    cause = failed.value.__cause__
    assert isinstance(cause, RuntimeError)
    assert cause.__context__ is None


def test_an_answer_that_fits_no_batch_blames_no_pair(open_reranker: Opener) -> None:
    calls = []

    class Short(FakeScorer):
        def forward(self, pairs: Any) -> list[float]:
            calls.append(len(pairs))
            return super().forward(pairs)[1:]

    reranker, _ = open_reranker(Short())

    with pytest.raises(ScoringError, match=r"shape \(63,\) for 64 pairs"):
        reranker.rank("q", [f"d{i}" for i in range(64)], timeout_s=20)
    assert len(calls) == 1


def test_the_deadline_ends_slow_cleaning_too(open_reranker: Opener) -> None:
    seen = []

    def slow(text: str, language: str | None, role: str) -> str:
        seen.append(text)
        time.sleep(0.01)
        return text

    reranker, _scorer = open_reranker(text_hook=slow)

    with pytest.raises(RerankTimeoutError):
        reranker.rank("q", [f"d{i}" for i in range(1000)], timeout_s=0.1)
    assert len(seen) < 900


async def test_a_cancelled_call_stops_between_its_queries(open_reranker: Opener) -> None:
    hooked = threading.Event()
    cancelled = threading.Event()
    seen = []

    def hook(text: str, language: str | None, role: str) -> str:
        if role == "query":
            seen.append(text)
            hooked.set()
            assert cancelled.wait(20)
        return text

    reranker, _ = open_reranker(text_hook=hook)
    task = asyncio.create_task(reranker.ascore([(f"q{i}", "d") for i in range(100)]))
    await _until(hooked.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()

    await reranker.arank("last", ["d"])
    assert len(seen) < 5


def test_one_scorer_has_one_queue_and_one_life(no_leaks: None) -> None:
    scorer = FakeScorer()
    with Reranker(scorer), pytest.raises(ConfigError, match="one scorer has one queue"):
        Reranker(scorer, cache_entries=3)

    with pytest.raises(ConfigError, match="closed with its last reranker"):
        Reranker(scorer)


def test_a_scorer_that_fails_to_close_is_logged_and_nothing_else(
    no_leaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    class Sticky(FakeScorer):
        def close(self) -> None:
            raise OSError("stuck")

    for use in (False, True):
        reranker = Reranker(Sticky())
        if use:
            reranker.rank("q", ["a"])
        else:
            reranker._leases.primary.scorer()
        reranker.close()

    assert caplog.text.count("closing the scorer fake failed") == 2


@pytest.mark.parametrize("value", [float("inf"), 1e300])
def test_a_deadline_beyond_any_clock_is_refused(open_reranker: Opener, value: float) -> None:
    reranker, _ = open_reranker()

    with pytest.raises(InputError, match="timeout_s"):
        reranker.rank("q", ["a"], timeout_s=value)
    with pytest.raises(ConfigError, match="timeout_s"):
        Reranker("lexical", timeout_s=value)


EXITS = {
    "a task under way": "async def main():\n"
    "    asyncio.create_task(reranker.arank('q', documents))\n"
    "    await asyncio.sleep(0.3)\n"
    "asyncio.run(main())",
    "a thread under way": "threading.Thread(\n"
    "    target=reranker.rank, args=('q', documents), daemon=True).start()\n"
    "time.sleep(0.3)",
}


@pytest.mark.parametrize("name", EXITS)
def test_a_program_that_ends_without_closing_ends_well(name: str) -> None:
    program = f"""
import asyncio, threading, time
from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer

reranker = Reranker(FakeScorer(delay_s=0.05, batch_tokens=64))
documents = [f"document {{i}}" for i in range(2000)]
{EXITS[name]}
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert answer.returncode == 0, answer.stderr


async def test_hooks_that_block_leave_threads_for_the_others(open_reranker: Opener) -> None:
    released = threading.Event()
    blocked = threading.Semaphore(0)

    def hook(text: str, language: str | None, role: str) -> str:
        if text == "blocked":
            blocked.release()
            assert released.wait(20)
        return text

    reranker, _ = open_reranker(text_hook=hook)
    waiting = [asyncio.create_task(reranker.arank("blocked", ["a"])) for _ in range(4)]
    for _ in waiting:
        assert await asyncio.to_thread(blocked.acquire, timeout=20)

    assert len(await reranker.arank("free", ["a"], timeout_s=20)) == 1
    released.set()
    await asyncio.gather(*waiting)


def test_closing_during_an_opening_closes_what_was_opened() -> None:
    opening, go_on = threading.Event(), threading.Event()
    scorer = FakeScorer()

    def slowly(config: object) -> FakeScorer:
        opening.set()
        assert go_on.wait(20)
        return scorer

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr("rerank_plugins.registry.open_scorer", slowly)
        reranker = Reranker("slow/model")
        call = threads.submit(reranker.rank, "q", ["a"])
        assert opening.wait(20)
        closing = threads.submit(reranker.close)
        while not reranker._leases.primary._closed:
            time.sleep(0.001)
        go_on.set()
        closing.result(20)

        with pytest.raises(ClosedError):
            call.result(20)
    assert scorer.closed
