"""Memory that runs out, workers that die, replicas: nobody waits for ever, answers are right."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import ConfigError, OutOfMemoryError, Reranker, ScoringError
from rerank_plugins.batching import GROW_AFTER, Budget
from rerank_plugins.engine import Engine
from rerank_plugins.errors import is_out_of_memory
from rerank_plugins.jobs import Job
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Opener = Callable[..., tuple[Reranker, FakeScorer]]

DOCUMENTS = [f"w{i}" for i in range(64)]


class Small(FakeScorer):
    """Has memory for ``room`` tokens, padding included."""

    def __init__(self, room: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.room = room
        self.failed = 0

    def forward(self, pairs: Sequence[Any]) -> list[float]:
        if max(pair.tokens for pair in pairs) * len(pairs) > self.room:
            self.failed += 1
            raise MemoryError
        return super().forward(pairs)


def test_what_fits_in_smaller_batches_is_scored_and_the_budget_remembered(
    open_reranker: Opener,
) -> None:
    scorer = Small(10, batch_tokens=64)
    reranker, _ = open_reranker(scorer, cache_entries=0)

    assert [d.logit for d in reranker.rank("w3 q", DOCUMENTS)][:2] == [1.0, 0.0]
    stats = reranker.stats()["fake"]
    assert scorer.failed == stats.out_of_memory >= 1
    assert (stats.pairs_failed, stats.pairs_scored) == (0, 64)
    assert stats.batch_tokens <= 10
    # What was scored before the memory ran out is not scored again.
    assert set(scorer.pairs_scored.values()) == {1}

    before = scorer.failed
    reranker.rank("q", [f"x{i}" for i in range(40)])
    assert scorer.failed == before


def test_the_budget_grows_back_when_there_is_memory_again(open_reranker: Opener) -> None:
    scorer = Small(10, batch_tokens=64)
    reranker, _ = open_reranker(scorer, cache_entries=0)
    reranker.rank("q", DOCUMENTS)
    cut = reranker.stats()["fake"].batch_tokens
    scorer.room = 1000

    for _ in range(60):
        reranker.rank("q", [f"x{i}" for i in range(300)])

    assert cut < reranker.stats()["fake"].batch_tokens == 64
    assert max(map(len, scorer.batches[-8:])) > cut


def test_only_the_pair_that_does_not_fit_alone_fails(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(Small(10, batch_tokens=64))
    long = " ".join(["word"] * 11)

    with pytest.raises(OutOfMemoryError, match=r"documents\[2\]: MemoryError"):
        reranker.rank("q", ["a", "b", long])
    assert len(reranker.rank("q", ["a", "b", "c"])) == 3
    # It says nothing about batches, where no smaller one would have helped.
    assert reranker.stats()["fake"].batch_tokens >= 10


def test_a_budget_is_cut_by_half_and_grows_by_full_batches_alone() -> None:
    budget = Budget(100)
    budget.cut(90)
    assert budget.tokens == 45
    for _ in range(10 * GROW_AFTER):
        budget.fitted(5)
    assert budget.tokens == 45
    for _ in range(GROW_AFTER):
        budget.fitted(44)
    assert budget.tokens == 50
    for _ in range(100 * GROW_AFTER):
        budget.fitted(budget.tokens)
    assert budget.tokens == 100
    budget.cut(1)
    assert budget.tokens == 1


def test_a_failure_between_good_batches_starts_the_growing_anew() -> None:
    budget = Budget(1000)
    budget.cut(200)
    for _ in range(GROW_AFTER - 1):
        budget.fitted(100)
    budget.cut(200)
    budget.fitted(100)

    assert budget.tokens == 100


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("said so"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        type("OutOfMemoryError", (RuntimeError,), {})("whatever torch says"),
    ],
    ids=repr,
)
def test_complaints_about_memory_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("a document of no memory"))


class Mortal(FakeScorer):
    """Raises what is in ``deaths``, one for each batch."""

    deaths: list[BaseException]

    def __init__(self, *deaths: BaseException, **settings: Any) -> None:
        super().__init__(**settings)
        self.deaths = list(deaths)

    def forward(self, pairs: Sequence[Any]) -> list[float]:
        if self.deaths:
            raise self.deaths.pop()
        return super().forward(pairs)


def test_the_batch_of_a_worker_that_died_is_tried_again(open_reranker: Opener) -> None:
    scorer = Mortal(SystemExit())
    reranker, _ = open_reranker(scorer)

    assert len(reranker.rank("q", DOCUMENTS, timeout_s=20)) == 64
    stats = reranker.stats()["fake"]
    assert (stats.workers_replaced, stats.replicas, stats.pairs_failed) == (1, 1, 0)
    # A scorer that the user made cannot be opened again: it goes on.
    assert not scorer.closed


def test_a_batch_that_kills_two_workers_fails_and_no_other(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(Mortal(SystemExit(), SystemExit()))

    with pytest.raises(ScoringError, match="SystemExit"):
        reranker.rank("q", ["a", "b"], timeout_s=20)
    assert len(reranker.rank("q", ["a", "c"], timeout_s=20)) == 2
    assert reranker.stats()["fake"].workers_replaced == 2
    assert reranker.stats()["fake"].tokens_waiting == 0


def test_only_the_pair_that_kills_workers_fails_and_not_its_batch(open_reranker: Opener) -> None:
    class Killed(FakeScorer):
        def forward(self, pairs: Sequence[Any]) -> list[float]:
            if any(pair.document == "deadly" for pair in pairs):
                raise SystemExit
            return super().forward(pairs)

    reranker, _ = open_reranker(Killed())
    engine = reranker._leases.primary
    deadly, innocent = Job(1), Job(8)
    dispatcher = engine._opened()[1]
    # Nobody takes a batch meanwhile: all of it is one.
    with dispatcher.queue.changed:
        engine.submit(innocent, "w1", enumerate(DOCUMENTS[:8]))
        engine.submit(deadly, "w1", iter([(0, "deadly")]))
    with pytest.raises(ScoringError, match="SystemExit"):
        deadly.future.result(20)
    innocent.future.result(20)

    assert [pair.logit for pair in innocent.delivered()] == [0.0, 1.0] + [0.0] * 6
    # Told before it is counted.
    until(lambda: reranker.stats()["fake"].workers_replaced == 2)


class Opening:
    """Opens scorers as it is told, and keeps them."""

    def __init__(self, make: Callable[[], FakeScorer]) -> None:
        self.make = make
        self.opened: list[FakeScorer] = []

    def __call__(self) -> FakeScorer:
        self.opened.append(self.make())
        return self.opened[-1]

    def engine(self, replicas: int = 1, **settings: Any) -> Engine:
        return Engine(
            "fake",
            self,
            **{"cache_entries": 0, "batch_tokens": None, "queue_tokens": 1000, **settings},
            more_replicas=[self] * (replicas - 1),
        )


def until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)


def ask(engine: Engine, *documents: str) -> list[float]:
    job = Job(len(documents))
    engine.submit(job, "w1 w2", enumerate(documents))
    job.future.result(20)
    return [pair.logit for pair in job.delivered()]


def test_the_scorer_of_a_worker_that_died_is_closed_and_opened_again(no_leaks: None) -> None:
    made = iter([Mortal(SystemExit()), FakeScorer()])
    opening = Opening(lambda: next(made))
    engine = opening.engine()

    assert ask(engine, "w1", "w3") == [1.0, 0.0]
    assert [scorer.closed for scorer in opening.opened] == [True, False]
    assert engine.scorer() is opening.opened[1]
    engine.close()
    assert opening.opened[1].closed


def test_where_no_worker_is_left_what_waits_fails_and_the_next_request_opens_anew(
    no_leaks: None,
) -> None:
    made: list[FakeScorer | Exception] = [Mortal(SystemExit()), OSError("no device"), FakeScorer()]

    def make() -> FakeScorer:
        found = made.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    opening = Opening(make)
    engine = opening.engine()

    with pytest.raises(ScoringError, match="no device"):
        ask(engine, "w1")
    assert engine.stats().replicas == 0
    assert ask(engine, "w1") == [1.0]
    stats = engine.stats()
    assert (stats.replicas, stats.pairs_failed, stats.pairs_scored) == (1, 1, 1)
    engine.close()
    assert all(scorer.closed for scorer in opening.opened)


def test_a_worker_that_cannot_be_replaced_leaves_its_batch_to_the_others(no_leaks: None) -> None:
    made: list[FakeScorer] = [Mortal(SystemExit()), FakeScorer()]

    def make() -> FakeScorer:
        if not made:
            raise OSError("no device")
        return made.pop(0)

    opening = Opening(make)
    engine = opening.engine(2)
    # The first replica dies of the pair that is its own to score.
    engine.warm_up()
    until(lambda: engine.stats().replicas == 1)
    assert ask(engine, "w1", "w3") == [1.0, 0.0]

    assert [scorer.pairs_scored.total() for scorer in opening.opened] == [0, 4]
    engine.close()
    assert [scorer.closed for scorer in opening.opened] == [True, True]


def test_a_fault_of_our_own_fails_what_waits_and_heals(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Opening(FakeScorer)
    engine = opening.engine()
    dispatcher = engine._opened()[1]

    def broken(_: int) -> list[Any]:
        raise ArithmeticError("a bug")

    monkeypatch.setattr(dispatcher.queue.waiting, "take_batch", broken)
    with pytest.raises(ScoringError, match="a bug"):
        ask(engine, "w1")
    assert ask(engine, "w1") == [1.0]
    engine.close()
    assert [scorer.closed for scorer in opening.opened] == [True, True]


def test_a_worker_may_die_while_its_request_goes(no_leaks: None) -> None:
    """What nobody waits for is not tried again."""
    entered, gone = threading.Event(), threading.Event()

    class Slow(FakeScorer):
        def forward(self, pairs: Sequence[Any]) -> list[float]:
            if pairs[0].document == "doomed":
                entered.set()
                assert gone.wait(20)
                raise SystemExit
            return super().forward(pairs)

    opening = Opening(Slow)
    engine = opening.engine()
    job = Job(1)
    engine.submit(job, "q", iter([(0, "doomed")]))
    assert entered.wait(20)
    job.cancel()
    gone.set()

    assert ask(engine, "w1") == [1.0]
    stats = engine.stats()
    assert (stats.workers_replaced, stats.pairs_dropped, stats.tokens_waiting) == (1, 1, 0)
    engine.close()


def test_closing_while_a_worker_is_replaced_leaves_nothing_open(no_leaks: None) -> None:
    reopening, go_on = threading.Event(), threading.Event()

    def make() -> FakeScorer:
        if not opening.opened:
            return Mortal(SystemExit())
        reopening.set()
        assert go_on.wait(20)
        return FakeScorer()

    opening = Opening(make)
    engine = opening.engine()
    job = Job(1)
    engine.submit(job, "q", iter([(0, "d")]))
    assert reopening.wait(20)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(engine.close)
        assert job.future.exception(20) is not None
        go_on.set()
        closing.result(20)

    assert [scorer.closed for scorer in opening.opened] == [True, True]


class Together(FakeScorer):
    """Goes on when so many are inside at once, each replica in its own thread."""

    inside: threading.Barrier

    def forward(self, pairs: Sequence[Any]) -> list[float]:
        if pairs[0].document.startswith("warm up"):
            return super().forward(pairs)
        self.inside.wait(20)
        return super().forward(pairs)


def test_replicas_score_at_the_same_time_from_one_queue(no_leaks: None) -> None:
    Together.inside = threading.Barrier(3)
    opening = Opening(lambda: Together(batch_tokens=1))
    engine = opening.engine(3)

    assert ask(engine, "w1", "w2", "w3") == [1.0, 1.0, 0.0]
    assert [len(scorer.batches) for scorer in opening.opened] == [1, 1, 1]
    assert engine.stats().replicas == 3
    engine.close()
    assert all(scorer.closed for scorer in opening.opened)


def test_warming_up_reaches_each_replica_once(no_leaks: None) -> None:
    opening = Opening(FakeScorer)
    engine = opening.engine(3, cache_entries=10)
    engine.warm_up()
    engine.warm_up()

    assert [len(scorer.batches) for scorer in opening.opened] == [1, 1, 1]
    engine.close()


def test_a_worker_that_dies_on_an_errand_answers_it_all_the_same(no_leaks: None) -> None:
    made = iter([Mortal(SystemExit()), FakeScorer(), FakeScorer()])
    engine = Opening(lambda: next(made)).engine(2)
    engine.warm_up()

    # The other replica may have answered before this one is replaced.
    until(lambda: engine.stats().workers_replaced == 1)
    engine.close()


def test_replicas_that_would_not_answer_alike_are_refused(no_leaks: None) -> None:
    made = iter([FakeScorer(max_words=9), FakeScorer(max_words=10)])
    opening = Opening(lambda: next(made))

    with pytest.raises(ConfigError, match="replicas: they must answer alike, and one is 'fake@10'"):
        opening.engine(2).scorer()
    assert all(scorer.closed for scorer in opening.opened)


def test_a_replica_that_cannot_be_opened_closes_those_before_it(no_leaks: None) -> None:
    def make() -> FakeScorer:
        if opening.opened:
            raise OSError("no second device")
        return FakeScorer()

    opening = Opening(make)
    with pytest.raises(OSError, match="no second device"):
        opening.engine(2).scorer()
    assert opening.opened[0].closed


@pytest.mark.parametrize("replicas", [2, ("cpu", "cpu")])
def test_a_scorer_of_ones_own_is_one_replica(no_leaks: None, replicas: Any) -> None:
    with pytest.raises(ConfigError, match="a Scorer of your own is one replica"):
        Reranker(FakeScorer(), replicas=replicas)


async def test_many_callers_with_workers_that_die_get_their_own_answers(no_leaks: None) -> None:
    class Frail(FakeScorer):
        calls = 0

        def forward(self, pairs: Sequence[Any]) -> list[float]:
            Frail.calls += 1
            if Frail.calls % 7 == 0:
                raise SystemExit
            return super().forward(pairs)

    opening = Opening(lambda: Frail(lambda _, d: float(d), batch_tokens=3))
    engine = opening.engine(2)
    jobs = []
    for i in range(50):
        job = Job(4)
        engine.submit(job, f"q{i}", iter([(k, str(i * 10 + k)) for k in range(4)]))
        jobs.append(job)
    async with asyncio.timeout(30):
        found = await asyncio.gather(
            *(asyncio.wrap_future(job.future) for job in jobs), return_exceptions=True
        )
    for i, (job, outcome) in enumerate(zip(jobs, found, strict=True)):
        if outcome is None:
            assert [pair.logit for pair in job.delivered()] == [i * 10 + k for k in range(4)]
        else:
            assert isinstance(outcome, ScoringError)

    assert engine.stats().workers_replaced > 0
    engine.close()
    assert all(scorer.closed for scorer in opening.opened)


@pytest.fixture(autouse=True)
def _gates_fall() -> Iterator[None]:
    """No barrier outlives its test."""
    yield
    if hasattr(Together, "inside"):
        Together.inside.abort()


class WordlessError(Exception):
    """What cannot even say what is wrong."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_without_words_of_an_encoder_fails_its_pair_alone(open_reranker: Opener) -> None:
    class Wordless(FakeScorer):
        def encode(self, query: str, documents: Sequence[str], **options: Any) -> list[Any]:
            if "poison" in documents:
                raise WordlessError
            return super().encode(query, documents, **options)

    reranker, _ = open_reranker(Wordless())

    with pytest.raises(ScoringError, match=r"could not encode documents\[1\]: WordlessError"):
        reranker.rank("q", ["a", "poison", "b"], timeout_s=20)


def test_each_engine_counts_the_requests_that_it_answers(no_leaks: None) -> None:
    first, second = Opening(FakeScorer).engine(), Opening(FakeScorer).engine()
    job = Job(3)
    for place, engine in enumerate((first, second, first)):
        engine.submit(job, f"q{place}", iter([(place, "d")]))
    job.future.result(20)

    assert (first.stats().requests, second.stats().requests) == (1, 1)
    first.close()
    second.close()


def test_an_error_without_words_fails_its_request_and_no_worker(open_reranker: Opener) -> None:
    class Wordless(FakeScorer):
        def forward(self, pairs: Sequence[Any]) -> list[float]:
            if any(pair.document == "poison" for pair in pairs):
                raise WordlessError
            return super().forward(pairs)

    reranker, _ = open_reranker(Wordless())

    with pytest.raises(ScoringError, match=r"documents\[1\].*WordlessError"):
        reranker.rank("q", ["a", "poison", "b"], timeout_s=20)
    assert reranker.rank("q", ["a", "b"], timeout_s=20)[0].logit == 0.0
    assert reranker.stats()["fake"].workers_replaced == 0
