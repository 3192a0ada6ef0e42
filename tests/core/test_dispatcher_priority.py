"""Priorities, waiting for a batch to fill, and waiting for room, through the reranker."""

from __future__ import annotations

import asyncio
import threading
import time
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
from rerank_plugins.jobs import Job
from rerank_plugins.options import WhenFull
from rerank_plugins.room import Turn
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Gated(FakeScorer):
    """A batch goes through while the gate is open."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"batch_tokens": 4, **settings})
        self.gate = threading.Event()
        self.entered = threading.Event()

    def forward(self, pairs: Sequence[Any]) -> list[float]:
        self.entered.set()
        assert self.gate.wait(30)
        return super().forward(pairs)

    @property
    def order(self) -> list[str]:
        """Documents as they were scored."""
        return [document for batch in self.batches for _, document in batch]


@pytest.fixture
def scorer() -> Iterator[Gated]:
    """A scorer whose gate opens at the latest when the test ends."""
    scorer = Gated()
    yield scorer
    scorer.gate.set()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def _ask(
    reranker: Reranker, documents: list[str], *, queued: int = -1, **arguments: Any
) -> asyncio.Task[Any]:
    """Ask, and return once so many tokens more wait (as many as there are documents)."""
    before = reranker.stats()["fake"].tokens_waiting
    task = asyncio.create_task(reranker.arank("q", documents, **arguments))
    more = len(documents) if queued < 0 else queued
    await _until(lambda: reranker.stats()["fake"].tokens_waiting >= before + more)
    return task


async def _busy(reranker: Reranker, scorer: Gated) -> asyncio.Task[Any]:
    task = asyncio.create_task(reranker.arank("q", ["first"]))
    await _until(scorer.entered.is_set)
    return task


async def test_interactive_requests_pass_bulk_ones(scorer: Gated) -> None:
    with Reranker(scorer) as reranker:
        tasks = [await _busy(reranker, scorer)]
        tasks.append(await _ask(reranker, ["bulk 1", "bulk 2"], priority="bulk"))
        tasks.append(await _ask(reranker, ["now 1", "now 2"], priority="interactive"))
        scorer.gate.set()
        await asyncio.gather(*tasks)

    assert [document[:4] for document in scorer.order] == ["firs", "now ", "now ", "bulk", "bulk"]


async def test_the_setting_is_what_a_call_leaves_out(scorer: Gated) -> None:
    with Reranker(scorer, priority="bulk") as reranker:
        tasks = [await _busy(reranker, scorer)]
        tasks.append(await _ask(reranker, ["bulk"]))
        tasks.append(await _ask(reranker, ["now"], priority="interactive"))
        scorer.gate.set()
        await asyncio.gather(*tasks)

    assert scorer.order == ["first", "now", "bulk"]


async def test_a_bulk_pair_that_somebody_interactive_joins_goes_first(scorer: Gated) -> None:
    with Reranker(scorer) as reranker:
        tasks = [await _busy(reranker, scorer)]
        documents = ["bulk 1", "joined", "bulk 2", "bulk 3", "bulk 4"]
        tasks.append(await _ask(reranker, documents, priority="bulk"))
        joining = asyncio.create_task(reranker.arank("q", ["joined"]))
        await _until(lambda: reranker.stats()["fake"].pairs_joined == 1)
        # Promoted a moment after it was joined, in the same thread.
        tasks.append(await _ask(reranker, ["later"]))
        scorer.gate.set()
        await asyncio.gather(*tasks, joining)

    assert set(scorer.order[1:3]) == {"joined", "later"}
    assert scorer.pairs_scored["q", "joined"] == 1


@pytest.mark.parametrize("method", ["rank", "score"])
def test_a_priority_that_is_none_is_named(method: str) -> None:
    with Reranker(FakeScorer()) as reranker:
        arguments: Any = ("q", ["d"]) if method == "rank" else ([("q", "d")],)
        with pytest.raises(InputError, match='priority must be "interactive" or "bulk", got'):
            getattr(reranker, method)(*arguments, priority="urgent")


async def test_a_busy_worker_waits_for_its_batch_to_fill(scorer: Gated) -> None:
    with Reranker(scorer, max_wait_s=60) as reranker:
        # Idle, it starts at once.
        first = await _busy(reranker, scorer)
        second = await _ask(reranker, ["1"])
        scorer.gate.set()
        await first
        third = await _ask(reranker, ["2", "3", "4"], queued=0)
        await asyncio.wait_for(asyncio.gather(second, third), 20)

    assert [len(batch) for batch in scorer.batches] == [1, 4]


async def test_it_waits_no_longer_than_it_may(scorer: Gated) -> None:
    with Reranker(scorer, max_wait_s=0.2) as reranker:
        first = await _busy(reranker, scorer)
        second = await _ask(reranker, ["1"])
        asked_s = time.monotonic()
        scorer.gate.set()
        await first
        await asyncio.wait_for(second, 20)

    assert time.monotonic() - asked_s >= 0.1
    assert [len(batch) for batch in scorer.batches] == [1, 1]


async def test_an_idle_worker_starts_at_once_however_long_it_may_wait() -> None:
    with Reranker(FakeScorer(), max_wait_s=60) as reranker:
        for i in range(3):
            await asyncio.wait_for(reranker.arank("q", [str(i)]), 20)
            # The worker sleeps before the next one comes.
            await _until(lambda: _sleeps(reranker))


def _sleeps(reranker: Reranker) -> bool:
    return bool(reranker._leases.primary._opened()[1].queue.changed._waiters)  # type: ignore[attr-defined]


async def test_closing_does_not_wait_for_a_batch_to_fill(scorer: Gated, no_leaks: None) -> None:
    reranker = Reranker(scorer, max_wait_s=60)
    first = await _busy(reranker, scorer)
    second = await _ask(reranker, ["1"])
    scorer.gate.set()
    await first
    await asyncio.wait_for(reranker.aclose(), 20)

    with pytest.raises(ClosedError):
        await second


async def test_new_requests_wait_for_room_where_they_are_told_to(scorer: Gated) -> None:
    with Reranker(scorer, queue_tokens=2, when_full="wait") as reranker:
        tasks = [await _busy(reranker, scorer), await _ask(reranker, ["1", "2"])]
        tasks += [asyncio.create_task(reranker.arank("q", [f"late {i}"])) for i in range(20)]
        await _until(lambda: len(_line(reranker)) == 20)
        assert reranker.stats()["fake"].tokens_waiting == 2
        scorer.gate.set()

        assert len(await asyncio.wait_for(asyncio.gather(*tasks), 20)) == 22
        assert len(_line(reranker)) == 0


def _line(reranker: Reranker) -> Any:
    return reranker._leases.primary._opened()[1].queue.line


async def test_callers_who_wait_for_room_keep_no_thread_from_cached_requests(
    scorer: Gated,
) -> None:
    with Reranker(scorer, queue_tokens=2, when_full="wait") as reranker:
        scorer.gate.set()
        await reranker.arank("q", ["known"])
        scorer.gate.clear()
        scorer.entered.clear()
        tasks = [await _busy(reranker, scorer), await _ask(reranker, ["1", "2"])]
        tasks += [asyncio.create_task(reranker.arank("q", [f"late {i}"])) for i in range(100)]
        await _until(lambda: len(_line(reranker)) == 100)

        known = await asyncio.wait_for(reranker.arank("q", ["known"]), 20)
        assert known[0].cached
        scorer.gate.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)


async def test_a_cancelled_caller_leaves_the_line_at_once(scorer: Gated) -> None:
    with Reranker(scorer, queue_tokens=2, when_full="wait") as reranker:
        tasks = [await _busy(reranker, scorer), await _ask(reranker, ["1", "2"])]
        late = [asyncio.create_task(reranker.arank("q", [f"late {i}"])) for i in range(10)]
        await _until(lambda: len(_line(reranker)) == 10)
        for task in late[:9]:
            task.cancel()
        await _until(lambda: len(_line(reranker)) == 1)
        scorer.gate.set()
        await asyncio.wait_for(asyncio.gather(*tasks, late[9]), 20)

    assert sorted(scorer.order) == ["1", "2", "first", "late 9"]


async def test_a_caller_waits_for_room_up_to_its_deadline(scorer: Gated) -> None:
    with Reranker(scorer, queue_tokens=2, when_full="wait") as reranker:
        tasks = [await _busy(reranker, scorer), await _ask(reranker, ["1", "2"])]
        with pytest.raises(RerankTimeoutError):
            await reranker.arank("q", ["late"], timeout_s=0.05)
        with pytest.raises(RerankTimeoutError):
            await asyncio.to_thread(reranker.rank, "q", ["late"], timeout_s=0.05)
        assert len(_line(reranker)) == 0
        scorer.gate.set()
        await asyncio.gather(*tasks)

    assert "late" not in scorer.order


async def test_closing_ends_the_wait_for_room(scorer: Gated, no_leaks: None) -> None:
    reranker = Reranker(scorer, queue_tokens=2, when_full="wait")
    first, second = await _busy(reranker, scorer), await _ask(reranker, ["1", "2"])
    late = asyncio.create_task(reranker.arank("q", ["late"]))
    thread = asyncio.create_task(asyncio.to_thread(reranker.rank, "q", ["also late"]))
    await _until(lambda: len(_line(reranker)) == 2)
    closing = asyncio.create_task(reranker.aclose())
    for task in (second, late, thread):
        with pytest.raises(ClosedError):
            await asyncio.wait_for(task, 20)
    scorer.gate.set()
    await first
    await closing


async def test_nobody_passes_those_who_wait_for_room(scorer: Gated) -> None:
    """A request that has begun would wait for ever behind a stream of new ones."""
    with Reranker(scorer, queue_tokens=2) as reranker:
        first = await _busy(reranker, scorer)
        long = asyncio.create_task(reranker.arank("q", [str(i) for i in range(640)]))
        await _until(lambda: len(_line(reranker)) == 1)
        with pytest.raises(QueueFullError, match="64 tokens are waiting") as full:
            await reranker.arank("q", ["new"])
        assert full.value.retry_after_s > 0
        scorer.gate.set()
        # More turns than are given at a time: each is given back.
        assert len(await asyncio.wait_for(long, 20)) == 640
        await first


async def test_room_is_for_those_first_who_were_called_and_have_not_come_yet(
    scorer: Gated,
) -> None:
    with Reranker(scorer, queue_tokens=2) as reranker:
        first = await _busy(reranker, scorer)
        turn = Turn()
        _line(reranker).join(turn)
        with pytest.raises(QueueFullError, match=r"^other requests wait for room in the queue, 1 "):
            await reranker.arank("q", ["new"])
        assert turn.come.done()

        _line(reranker).leave(turn)
        second = await _ask(reranker, ["new"])
        scorer.gate.set()
        await asyncio.gather(first, second)


async def test_expired_requests_are_not_scored(scorer: Gated) -> None:
    """Also where nobody got round to cancelling: here the loop that would is held up."""
    with Reranker(scorer) as reranker:
        first = await _busy(reranker, scorer)
        late = await _ask(reranker, ["late"], timeout_s=0.1)
        time.sleep(0.2)  # noqa: ASYNC251  holding the loop up is the test
        scorer.gate.set()
        assert len(await asyncio.to_thread(reranker.rank, "q", ["after"])) == 1
        await first
        with pytest.raises(RerankTimeoutError):
            await late

    assert "late" not in scorer.order


def test_one_scorer_has_one_way_to_wait() -> None:
    with (
        FakeScorerOf(max_wait_s=1.0) as (scorer, _),
        pytest.raises(ConfigError, match="max_wait_s, and one scorer"),
    ):
        Reranker(scorer, max_wait_s=2.0)


class FakeScorerOf:
    """A fake scorer in use by a reranker of some settings."""

    def __init__(self, **settings: Any) -> None:
        self.scorer = FakeScorer()
        self.reranker = Reranker(self.scorer, **settings)

    def __enter__(self) -> tuple[FakeScorer, Reranker]:
        return self.scorer, self.reranker

    def __exit__(self, *_: object) -> None:
        self.reranker.close()


def test_a_loop_that_dies_with_callers_in_the_line_harms_nobody(scorer: Gated) -> None:
    async def abandon() -> None:
        first = await _busy(reranker, scorer)
        second = await _ask(reranker, ["1", "2"])
        late = [asyncio.create_task(reranker.arank("q", [f"late {i}"])) for i in range(9)]
        await _until(lambda: len(_line(reranker)) == 9)
        del first, second, late

    with Reranker(scorer, queue_tokens=2, when_full="wait") as reranker:
        asyncio.run(abandon())
        scorer.gate.set()

        assert len(reranker.rank("q", ["after"], timeout_s=20)) == 1
        assert len(_line(reranker)) == 0


async def test_who_was_cancelled_in_the_line_is_not_encoded(scorer: Gated) -> None:
    with Reranker(scorer, queue_tokens=2, when_full="wait") as reranker:
        tasks = [await _busy(reranker, scorer), await _ask(reranker, ["1", "2"])]
        job, engine = Job(1), reranker._leases.primary
        late = iter([(0, "late")])
        waiting = asyncio.create_task(
            asyncio.to_thread(engine.submit, job, "q", late, when_full=WhenFull.WAIT)
        )
        await _until(lambda: len(_line(reranker)) == 1)
        job.cancel()
        await asyncio.wait_for(waiting, 20)

        assert engine.stats().cache_misses == 3
        scorer.gate.set()
        await asyncio.gather(*tasks)


async def test_a_failing_chunk_gives_its_place_in_the_line_back(scorer: Gated) -> None:
    class Strict(Gated):
        def encode(self, query: str, documents: Any, **_: Any) -> Any:
            if "bad" in documents:
                raise ValueError("bad text")
            return super().encode(query, documents)

    strict = Strict()
    with Reranker(strict, queue_tokens=2, when_full="wait") as reranker:
        tasks = [await _busy(reranker, strict), await _ask(reranker, ["1", "2"])]
        bad = [asyncio.create_task(reranker.arank("q", ["bad"])) for _ in range(9)]
        await _until(lambda: len(_line(reranker)) == 9)
        good = asyncio.create_task(reranker.arank("q", ["good"]))
        await _until(lambda: len(_line(reranker)) == 10)
        strict.gate.set()

        assert len(await asyncio.wait_for(good, 20)) == 1
        for outcome in await asyncio.gather(*bad, return_exceptions=True):
            assert isinstance(outcome, ScoringError)
        await asyncio.gather(*tasks)
