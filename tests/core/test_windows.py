"""Documents in windows: one answer for several pieces in the queue, and nobody left waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import Reranker, ScoringError, Window
from rerank_plugins.batching import Budget
from rerank_plugins.cache import PairCache
from rerank_plugins.jobs import CachedPair, Job
from rerank_plugins.models.windows import WindowedPair
from rerank_plugins.observing import Audience
from rerank_plugins.options import WindowScore
from rerank_plugins.scoring import BatchScoring, Counter
from rerank_plugins.testing import FakePair, FakeScorer
from rerank_plugins.watching import BatchWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Opener = Callable[..., tuple[Reranker, FakeScorer]]


class InWindows(FakeScorer):
    """Scores documents of several words word by word; a word's logit is the number in it."""

    def __init__(self, score: WindowScore = WindowScore.MAX, **settings: Any) -> None:
        super().__init__(lambda query, word: float(word), **settings)
        self._score = score
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def encode(self, query: str, documents: Sequence[str]) -> Any:
        return [self._windows(query, document.split()) for document in documents]

    def _windows(self, query: str, words: list[str]) -> FakePair | WindowedPair[FakePair]:
        pairs = tuple(FakePair(query, word, 1, truncated=False) for word in words)
        if len(pairs) == 1:
            return pairs[0]
        spans = tuple((i, i + 1) for i in range(len(pairs)))
        return WindowedPair(pairs, spans, self._score)

    def forward(self, pairs: Any) -> list[float]:
        self.entered.set()
        assert self.gate.wait(30)
        return super().forward(pairs)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_the_highest_logit_of_the_windows_is_the_documents(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(InWindows())

    first, second, third = reranker.rank("q", ["2", "1 9 3", "4 0"])

    assert [(d.index, d.logit) for d in (first, second, third)] == [(1, 9.0), (2, 4.0), (0, 2.0)]
    assert [d.window for d in (first, second, third)] == [
        Window(1, 3, 1, 2),
        Window(0, 2, 0, 1),
        None,
    ]
    assert not any(d.truncated for d in (first, second, third))


def test_the_mean_of_the_windows_is_the_documents(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(InWindows(WindowScore.MEAN))

    first, second = reranker.rank("q", ["3", "1 9 8"])

    assert (first.logit, first.window) == (6.0, Window(1, 3, 1, 2))
    assert second.logit == 3.0


def test_scores_of_pairs_are_those_of_a_ranking(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(InWindows(), activation="logit")

    assert reranker.score([("q", "1 9 3"), ("q", "4")]) == [9.0, 4.0]


@pytest.mark.parametrize("padded", [False, True])
def test_a_long_document_makes_no_giant_batch(open_reranker: Opener, padded: bool) -> None:
    reranker, scorer = open_reranker(InWindows(padded=padded, batch_tokens=8))
    document = " ".join(str(i) for i in range(60))

    ranking = reranker.rank("q", [document, "7"])

    assert ranking[0].window == Window(59, 60, 59, 60)
    assert max(map(len, scorer.batches)) == 8
    stats = reranker.stats()["fake"]
    # A pair is a query and a document, in however many windows.
    assert (stats.pairs_scored, stats.batches, stats.tokens_scored) == (2, 8, 61)


def test_the_cache_tells_the_window_too(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(InWindows())
    (scored,) = reranker.rank("q", ["1 9 3"])
    (known,) = reranker.rank("q", ["1 9 3"])

    assert known.cached
    assert (known.logit, known.window, known.truncated) == (9.0, scored.window, False)
    assert sum(map(len, scorer.batches)) == 3


async def test_two_requests_for_a_document_in_windows_score_it_once(
    open_reranker: Opener,
) -> None:
    scorer = InWindows(batch_tokens=2)
    reranker, _ = open_reranker(scorer)
    scorer.gate.clear()
    first = asyncio.create_task(reranker.arank("q", ["1 2 9 3 4"]))
    await _until(scorer.entered.is_set)
    # Two of five windows are being scored.
    second = asyncio.create_task(reranker.arank("q", ["1 2 9 3 4"]))
    await _until(lambda: reranker.stats()["fake"].pairs_joined == 1)
    scorer.gate.set()

    for ranking in await asyncio.gather(first, second):
        assert (ranking[0].logit, ranking[0].window) == (9.0, Window(2, 5, 2, 3))
    assert sum(map(len, scorer.batches)) == 5


async def test_windows_of_a_cancelled_request_are_dropped(open_reranker: Opener) -> None:
    scorer = InWindows(batch_tokens=2)
    reranker, _ = open_reranker(scorer)
    scorer.gate.clear()
    doomed = asyncio.create_task(reranker.arank("q", ["1 2 9 3 4"]))
    await _until(scorer.entered.is_set)
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    kept = asyncio.create_task(reranker.arank("other", ["5 6"]))
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 5)
    scorer.gate.set()

    assert (await kept)[0].logit == 6.0
    assert sorted(word for _, word in scorer.pairs_scored) == ["1", "2", "5", "6"]
    stats = reranker.stats()["fake"]
    assert (stats.pairs_dropped, stats.pairs_scored, stats.tokens_waiting) == (1, 1, 0)


async def test_a_pair_that_is_asked_for_again_outlives_the_windows_of_one_that_was_dropped(
    open_reranker: Opener,
) -> None:
    """A new ticket of the same pair may wait while pieces of the old one still lie in the queue."""
    scorer = InWindows(batch_tokens=2)
    reranker, _ = open_reranker(scorer)
    scorer.gate.clear()
    running = asyncio.create_task(reranker.arank("q", ["0"]))
    await _until(scorer.entered.is_set)
    doomed = asyncio.create_task(reranker.arank("q", ["1 2 9 3 4"]))
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 5)
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    # As where a batch is formed that holds some of its windows.
    engine = reranker._leases.primary
    dispatcher = engine._opened()[1]
    ticket = next(iter(dispatcher.queue.waiting)).ticket
    assert engine._cache.drop_unwanted([ticket]) == {id(ticket)}
    again = asyncio.create_task(reranker.arank("q", ["1 2 9 3 4"]))
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 10)
    scorer.gate.set()

    assert (await asyncio.wait_for(again, 20))[0].logit == 9.0
    await running
    assert not engine._cache._tickets


def test_a_window_that_fails_fails_its_document_and_no_other(open_reranker: Opener) -> None:
    scorer = InWindows(batch_tokens=4)
    reranker, _ = open_reranker(scorer)

    with pytest.raises(ScoringError, match=r"documents\[1\].*could not convert string"):
        reranker.rank("q", ["5", "1 2 broken 3 broken 4 5 6 7 8"], timeout_s=20)

    assert reranker.rank("q", ["5", "1 2 3"], timeout_s=20)[0].logit == 5.0
    stats = reranker.stats()["fake"]
    assert (stats.pairs_failed, stats.pairs_dropped, stats.tokens_waiting) == (1, 0, 0)


def test_a_window_without_a_finite_logit_fails_its_document(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(InWindows())

    with pytest.raises(ScoringError, match=r"documents\[0\]: the logit is nan"):
        reranker.rank("q", ["1 nan 2 inf"], timeout_s=20)
    assert reranker.stats()["fake"].pairs_failed == 1


async def test_other_requests_survive_a_window_that_fails(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(InWindows(batch_tokens=3, delay_s=0.001))

    answers = await asyncio.gather(
        *(
            reranker.arank(f"q{i}", ["1 2 3", "4 broken 5" if i % 5 == 2 else "6 7 8 9", "0"])
            for i in range(25)
        ),
        return_exceptions=True,
    )

    for i, answer in enumerate(answers):
        if i % 5 == 2:
            assert isinstance(answer, ScoringError)
        else:
            assert not isinstance(answer, BaseException)
            assert [d.logit for d in answer] == [9.0, 3.0, 0.0]


async def test_closing_fails_a_document_of_which_a_window_is_being_scored(no_leaks: None) -> None:
    scorer = InWindows(batch_tokens=2)
    reranker = Reranker(scorer)
    scorer.gate.clear()
    waiting = asyncio.create_task(reranker.arank("q", ["1 2 9 3 4"]))
    await _until(scorer.entered.is_set)

    closing = asyncio.create_task(reranker.aclose())
    with pytest.raises(Exception, match="closed during the call"):
        await waiting
    scorer.gate.set()
    await closing


def test_a_document_in_no_windows_fails_where_it_is_encoded(open_reranker: Opener) -> None:
    class Empty(InWindows):
        def encode(self, query: str, documents: Sequence[str]) -> Any:
            return [WindowedPair((), (), WindowScore.MAX) for _ in documents]

    reranker, _ = open_reranker(Empty())

    with pytest.raises(ScoringError, match="a document in no windows has no logit"):
        reranker.rank("q", ["a", "b"], timeout_s=20)


def test_what_was_settled_is_settled_once() -> None:
    cache, job = PairCache(0), Job(1)
    (old,) = cache.claim(job, [b"a"], [0]).values()
    job.cancel()
    assert cache.drop_unwanted([old]) == {id(old)}
    again = Job(1)
    (new,) = cache.claim(again, [b"a"], [0]).values()

    assert cache.drop_unwanted([old, old]) == set()
    cache.fail([old], lambda waiter: ValueError(waiter.where))
    cache.resolve([(old, CachedPair(1.0, truncated=False))])
    assert again.waiting
    cache.resolve([(new, CachedPair(2.0, truncated=False))])

    again.future.result(timeout=0)
    assert again.delivered()[0].logit == 2.0


class Prefixed(FakeScorer):
    """A scorer of unpadded batches whose pairs begin with their query."""

    class Pair(FakePair):
        """A pair of one token of its own, behind a query of one token a word."""

        @property
        def prefix(self) -> Any:
            return Prefixed.Query(self.query)

    class Query:
        """What pairs of one query begin with."""

        def __init__(self, query: str) -> None:
            self.key = query.encode()
            self.tokens = len(query.split())

    def encode(self, query: str, documents: Sequence[str]) -> Any:
        own = 1 + len(query.split())
        return [self.Pair(query, document, own, truncated=False) for document in documents]


async def test_pairs_of_one_query_share_its_prefix(open_reranker: Opener) -> None:
    gate, entered = threading.Event(), threading.Event()

    class Gated(Prefixed):
        def forward(self, pairs: Any) -> list[float]:
            entered.set()
            assert gate.wait(30)
            return super().forward(pairs)

    # Room for four pairs behind a prefix of six tokens, not for two prefixes.
    reranker, scorer = open_reranker(Gated(padded=False, batch_tokens=4))
    first = asyncio.create_task(reranker.arank("first", ["d"]))
    await _until(entered.is_set)
    queries = ["a b c d e f", "u v w x y z"]
    tasks = [
        asyncio.create_task(reranker.arank(query, [f"d{i} {half}" for i in range(2)]))
        for half in range(2)
        for query in queries
    ]
    # A prefix that many wait behind is one thing to compute.
    await _until(lambda: reranker.stats()["fake"].tokens_waiting == 8 * 1 + 2 * 6)
    gate.set()
    await asyncio.gather(first, *tasks)

    assert all(len({query for query, _ in batch}) == 1 for batch in scorer.batches)
    assert [len(batch) for batch in scorer.batches] == [1, 4, 4]
    stats = reranker.stats()["fake"]
    assert (stats.tokens_scored, stats.tokens_padded) == (2 + 10 + 10, 0)


def test_a_padded_scorer_computes_the_prefix_in_each_row(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(Prefixed(padded=True, batch_tokens=14))

    reranker.rank("a b c d e f", ["d0", "d1", "d2"])

    assert max(map(len, scorer.batches)) == 2
    assert reranker.stats()["fake"].tokens_scored == 21


def test_disorder_among_windows_leaves_nobody_waiting(no_leaks: None) -> None:
    """Threads that give up, fail and ask again for the same long documents."""
    import random

    scorer = InWindows(batch_tokens=3)
    reranker = Reranker(scorer, cache_entries=0, language_detector=None, queue_tokens=40)
    wrong: list[object] = []

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            documents = [
                " ".join(str(chance.randrange(9)) for _ in range(chance.choice([1, 2, 9])))
                + (" broken" if chance.random() < 0.05 else "")
                for _ in range(3)
            ] + ["1 2 3 4 5 6 7"]
            try:
                found = reranker.rank("q", documents, timeout_s=chance.choice([5, 0.0005, 0.003]))
            except Exception as exc:  # noqa: BLE001  looked at below
                if type(exc).__name__ not in {
                    "RerankTimeoutError",
                    "ScoringError",
                    "QueueFullError",
                }:
                    wrong.append(exc)
                continue
            wrong.extend(d for d in found if d.logit != max(map(float, d.text.split())))

    threads = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    for _ in range(2000):
        if not reranker._leases.primary._cache._tickets:
            break
        time.sleep(0.005)
    assert not reranker._leases.primary._cache._tickets
    assert reranker.stats()["fake"].tokens_waiting == 0
    reranker.close()


def test_a_pair_that_two_replicas_end_at_once_is_counted_once() -> None:
    cache, counter, job = PairCache(0), Counter(), Job(1)
    (ticket,) = cache.claim(job, [b"a"], [0]).values()
    watch = BatchWatch(Audience(), "m", cache)
    scoring = BatchScoring(InWindows(), cache, counter, Budget(8), watch)
    first, last = ticket.take(InWindows().encode("q", ["1 9"])[0])

    scoring.score([first])
    # What each of them finds that brings the last window but one as the other brings the last.
    for _ in range(2):
        scoring.score([last])

    assert job.delivered()[0].logit == 9.0
    assert counter.total.pairs_scored == 1
