"""Rerankers with a shared cache: what is found, what is scored, who waits, and for what."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import MissingExtraError, QueueFullError, Reranker
from rerank_plugins.engine import Engine
from rerank_plugins.jobs import Job
from rerank_plugins.models.windows import WindowedPair
from rerank_plugins.options import WindowScore
from rerank_plugins.registry import ENGINES
from rerank_plugins.testing import FakePair, FakeScorer
from rerank_plugins.tiers.shared import SharedCache
from rerank_plugins.tiers.store import find_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DOCUMENTS = [f"a red fox number {i}" for i in range(150)]
PATIENT = {"shared_cache_timeout_s": 30}


def logits(query: str, document: str) -> float:
    """Give logits with digits that a float32 has."""
    return len(document) / 8 + len(query)


def test_another_reranker_finds_what_was_scored(where: str, no_leaks: None) -> None:
    with Reranker(FakeScorer(logits), shared_cache=where, **PATIENT) as first:
        scored = first.rank("red fox", DOCUMENTS)
    scorer = FakeScorer(logits)
    with Reranker(scorer, shared_cache=where, **PATIENT) as second:
        found = second.rank("red fox", DOCUMENTS)
        stats = second.stats()["fake"]
        again = second.rank("red fox", DOCUMENTS)

        assert [d.logit for d in found] == [d.logit for d in scored]
        assert found.tokens == scored.tokens == 5 * len(DOCUMENTS)
        assert not any(d.cached for d in scored)
        assert all(d.cached for d in found)
        assert scorer.batches == []
        assert (stats.shared_hits, stats.cache_hits, stats.cache_misses) == (150, 0, 0)
        assert (stats.shared_errors, stats.shared_skipped) == (0, 0)
        assert all(d.cached for d in again)
        assert second.stats()["fake"].cache_hits == 150
        assert second.stats()["fake"].shared_hits == 150


async def test_event_loops_and_score_find_it_too(where: str, no_leaks: None) -> None:
    with Reranker(FakeScorer(logits), shared_cache=where, **PATIENT) as first:
        first.score([("red fox", text) for text in DOCUMENTS])
    scorer = FakeScorer(logits)
    async with Reranker(scorer, shared_cache=where, **PATIENT) as second:
        ranking = await second.arank("red fox", DOCUMENTS)
        await second.ascore([("red fox", DOCUMENTS[0]), ("blue fox", "new")])

    assert all(d.cached for d in ranking)
    assert set(scorer.pairs_scored) == {("blue fox", "new")}


def test_without_a_cache_in_memory_the_shared_one_answers(where: str) -> None:
    with Reranker(FakeScorer(), shared_cache=where, cache_entries=0, **PATIENT) as first:
        first.rank("red fox", DOCUMENTS[:3])
    scorer = FakeScorer()
    with Reranker(scorer, shared_cache=where, cache_entries=0, **PATIENT) as second:
        assert [d.cached for d in second.rank("red fox", DOCUMENTS[:4] * 2)] == (
            [True, True, True, False] * 2
        )
        assert second.stats()["fake"].cache_entries == 0
    assert scorer.pairs_scored.total() == 1


def test_scorers_of_another_identity_share_nothing(where: str) -> None:
    with Reranker(FakeScorer(), shared_cache=where, **PATIENT) as first:
        first.rank("red fox", DOCUMENTS[:3])
    for other in (FakeScorer(max_words=100), FakeScorer(name="bf16"), FakeScorer(instruction="x")):
        with Reranker(other, shared_cache=where, **PATIENT) as reranker:
            assert not any(d.cached for d in reranker.rank("red fox", DOCUMENTS[:3]))


def test_instructions_are_told_apart(where: str) -> None:
    scorer = FakeScorer(instruction="find facts")
    with Reranker(scorer, shared_cache=where, **PATIENT) as first:
        first.rank("red fox", DOCUMENTS[:3], instruction="find colours")
    with Reranker(FakeScorer(instruction="find facts"), shared_cache=where, **PATIENT) as second:
        assert not any(d.cached for d in second.rank("red fox", DOCUMENTS[:3]))
        told = second.rank("red fox", DOCUMENTS[:3], instruction="find colours")
        assert all(d.cached for d in told)


class Windowed(FakeScorer):
    """Scores each word as a window."""

    def encode(self, query: str, documents: Sequence[str], **_: Any) -> Any:
        return [
            WindowedPair(
                windows=tuple(FakePair(query, word, 1, False) for word in document.split()),
                spans=tuple((i, i + 1) for i in range(len(document.split()))),
                score=WindowScore.MEAN,
            )
            for document in documents
        ]


def test_windows_and_means_come_back_to_the_last_digit(where: str) -> None:
    documents = ["a bb cc", "dddd e f"]
    with Reranker(Windowed(lambda _, d: len(d) / 3), shared_cache=where, **PATIENT) as first:
        scored = first.rank("fox", documents)
    with Reranker(Windowed(), shared_cache=where, **PATIENT) as second:
        found = second.rank("fox", documents)

    assert [(d.logit, d.window, d.truncated) for d in found] == [
        (d.logit, d.window, d.truncated) for d in scored
    ]
    assert all(d.cached and d.window is not None for d in found)


def test_forgetting_is_for_memory_alone(where: str) -> None:
    with Reranker(FakeScorer(), shared_cache=where, **PATIENT) as reranker:
        reranker.rank("red fox", DOCUMENTS[:3])
        reranker.close()
    with Reranker(scorer := FakeScorer(), shared_cache=where, **PATIENT) as reranker:
        reranker.rank("red fox", DOCUMENTS[:3])
        reranker.clear_cache()
        assert all(d.cached for d in reranker.rank("red fox", DOCUMENTS[:3]))
    assert scorer.batches == []


def test_what_has_gone_by_its_age_is_scored_again(where: str) -> None:
    settings: dict[str, Any] = {"shared_cache": where, "shared_cache_ttl_s": 0.05, **PATIENT}
    with Reranker(FakeScorer(), **settings) as reranker:
        reranker.rank("red fox", DOCUMENTS[:3])
    threading.Event().wait(0.2)
    with Reranker(FakeScorer(), **settings) as reranker:
        assert not any(d.cached for d in reranker.rank("red fox", DOCUMENTS[:3]))


def test_warming_up_asks_nobody_else_and_scores(where: str) -> None:
    for _ in range(2):
        with Reranker(scorer := FakeScorer(), shared_cache=where, **PATIENT) as reranker:
            reranker.warmup()
        assert scorer.pairs_scored.total() == 1


class HeldStore:
    """A store that stands at its gate when it is asked for anything but the probe."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked = threading.Event()

    def get_many(self, keys: Sequence[bytes]) -> Sequence[object]:
        if not keys[0].endswith(bytes(16)):
            self.asked.set()
            assert self.gate.wait(30)
        return [None] * len(keys)

    def set_many(self, items: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> HeldStore:
    """Whatever store is looked for, this is found."""
    store = HeldStore()
    monkeypatch.setattr("rerank_plugins.registry.find_store", lambda config: lambda: store)
    return store


async def test_a_store_that_hangs_holds_no_event_loop(held: HeldStore, no_leaks: None) -> None:
    async with Reranker(FakeScorer(), shared_cache="any", **PATIENT) as reranker:
        await asyncio.to_thread(reranker.warmup)
        waiting = [asyncio.create_task(reranker.arank(f"fox {i}", ["a"])) for i in range(5)]
        while not held.asked.is_set():
            await asyncio.sleep(0.001)
        assert not any(task.done() for task in waiting)
        held.gate.set()
        assert len(await asyncio.gather(*waiting)) == 5


async def test_callers_who_wait_for_the_store_keep_nobody_else_out(held: HeldStore) -> None:
    held.gate.set()
    async with Reranker(FakeScorer(), shared_cache="any", **PATIENT) as reranker:
        await reranker.arank("fox", ["a fox"])
        held.gate.clear()
        held.asked.clear()
        waiting = [asyncio.create_task(reranker.arank(f"fox {i}", ["a"])) for i in range(5)]
        while not held.asked.is_set():
            await asyncio.sleep(0.001)
        ranking = await asyncio.wait_for(reranker.arank("fox", ["a fox"]), 20)
        assert ranking[0].cached
        assert not any(task.done() for task in waiting)
        held.gate.set()
        await asyncio.gather(*waiting)


async def test_a_cancelled_call_leaves_its_pairs_to_others(held: HeldStore) -> None:
    """While a request waits for the store nothing is claimed, so nobody waits for it."""
    scorer = FakeScorer()
    async with Reranker(scorer, shared_cache="any", **PATIENT) as reranker:
        await asyncio.to_thread(reranker.warmup)
        cancelled = asyncio.create_task(reranker.arank("fox", ["a fox"]))
        while not held.asked.is_set():
            await asyncio.sleep(0.001)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        other = asyncio.create_task(reranker.arank("fox", ["a fox"]))
        await asyncio.sleep(0)
        held.gate.set()

        assert (await other)[0].logit == 1.0
        assert reranker._leases.primary._cache._tickets == {}


def test_ctrl_c_in_the_middle_of_a_look_loses_no_ticket(
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_plugins.registry.find_store", lambda config: HeldStore)
    reranker, _ = open_reranker(shared_cache="any", **PATIENT)
    reranker.warmup()

    def interrupt(*_: object) -> dict[bytes, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SharedCache, "look_up", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reranker.rank("fox", ["a fox"])
    assert reranker._leases.primary._cache._tickets == {}


def test_a_deadline_is_kept_while_the_store_is_asked(held: HeldStore) -> None:
    with Reranker(FakeScorer(), shared_cache="any", **PATIENT) as reranker:
        reranker.warmup()
        with pytest.raises(TimeoutError):
            reranker.rank("fox", ["a fox"], timeout_s=0.05)
        assert reranker.stats()["fake"].shared_errors == 0
        held.gate.set()


def test_what_the_shared_cache_knows_passes_a_full_queue(where: str) -> None:
    with Reranker(FakeScorer(), shared_cache=where, **PATIENT) as first:
        first.rank("red fox", DOCUMENTS[:3])
    gate, entered = threading.Event(), threading.Event()

    def slow(query: str, document: str) -> float:
        entered.set()
        assert gate.wait(30)
        return 0.0

    scorer = FakeScorer(slow)
    with Reranker(scorer, shared_cache=where, queue_tokens=1, batch_tokens=1, **PATIENT) as second:
        calls = [
            threading.Thread(target=second.rank, args=("blue", [text])) for text in ("one", "two")
        ]
        calls[0].start()
        assert entered.wait(30)
        calls[1].start()
        while not second.stats()["fake"].tokens_waiting:
            pass
        with pytest.raises(QueueFullError):
            second.rank("blue", ["three"])
        assert all(d.cached for d in second.rank("red fox", DOCUMENTS[:3]))
        gate.set()
        for call in calls:
            call.join(30)


@pytest.mark.parametrize(
    ("where_to", "module", "extra"),
    [("folder", "diskcache", "disk-cache"), ("redis://127.0.0.1:1", "redis", "redis")],
)
def test_a_package_that_is_missing_is_said_when_the_model_is_opened(
    where_to: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "rerank_plugins.tiers.disk_store", raising=False)
    with Reranker(FakeScorer(), shared_cache=where_to) as reranker:
        for attempt in (reranker.warmup, lambda: reranker.rank("fox", ["a fox"])):
            with pytest.raises(MissingExtraError, match=rf"rerank-plugins\[{extra}\]"):
                attempt()


def test_copies_and_pickles_keep_their_shared_cache(where: str) -> None:
    with Reranker("lexical", shared_cache=where, **PATIENT) as reranker:
        reranker.rank("red fox", DOCUMENTS[:3])
        for other in (copy.deepcopy(reranker), pickle.loads(pickle.dumps(reranker))):
            assert all(d.cached for d in other.rank("red fox", DOCUMENTS[:3]))
            assert other.config == reranker.config
            other.close()
    with pickle.loads(pickle.dumps(reranker)) as later:
        assert all(d.cached for d in later.rank("red fox", DOCUMENTS[:3]))
        assert later.stats()["lexical"].shared_hits == 3


def test_a_model_that_stands_in_for_another_has_none(tmp_path: Any) -> None:
    class Broken(FakeScorer):
        def forward(self, pairs: Any) -> list[float]:
            raise RuntimeError("broken")

    settings: dict[str, Any] = {"on_error": "fallback", "fallback": ["lexical"]}
    with Reranker(Broken(), shared_cache=str(tmp_path), **PATIENT, **settings) as reranker:
        assert reranker.rank("red fox", DOCUMENTS[:3]).scorer == "lexical"
        assert reranker._leases.lease("lexical")._shared is None
        assert reranker._leases.primary._shared is not None


def test_an_engine_without_one_has_no_part_of_it() -> None:
    with Reranker(FakeScorer()) as reranker:
        reranker.rank("red fox", DOCUMENTS[:3])
        stats = reranker.stats()["fake"]
        assert not reranker._leases.primary.may_block
        assert (stats.shared_hits, stats.shared_errors, stats.shared_skipped) == (0, 0, 0)
    assert not ENGINES._due_in_parent


def test_submitting_by_hand_asks_it_too(where: str) -> None:
    with Reranker("lexical", shared_cache=where, **PATIENT) as reranker:
        reranker.rank("red fox", ["a red fox"])
        config = reranker.config

    def make() -> SharedCache:
        return SharedCache("x", "x", lambda: find_store(config), timeout_s=30)

    engine = Engine(
        "x", FakeScorer, cache_entries=1, batch_tokens=None, queue_tokens=9, make_shared=make
    )
    try:
        for expected in (False, True):
            engine.clear_cache()
            job = Job(1)
            engine.submit(job, "fox", iter([(0, "a fox")]))
            job.future.result(30)
            assert job.cached == [expected]
            while not expected and engine._shared is not None and engine._shared._writing:
                threading.Event().wait(0.001)
    finally:
        engine.close()
