"""Engines that nobody holds any more: waited for at exit, and not kept beyond their end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rerank_plugins import ClosedError, ConfigError, Reranker
from rerank_plugins.cleaning import default_detector
from rerank_plugins.engine import Engine
from rerank_plugins.jobs import Job
from rerank_plugins.registry import Registry
from rerank_plugins.room import INVITED_TURNS
from rerank_plugins.testing import FakeScorer

DROPPED = """
import os
import time

from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer


class Slow(FakeScorer):
    def close(self):
        time.sleep(0.5)
        # In one piece: two threads close at the same time.
        os.write(1, b"closed\\n")


for _ in range(2):
    Reranker(Slow()).rank("fox", ["a fox"])
"""


def test_at_exit_engines_that_were_only_dropped_are_waited_for() -> None:
    """A worker that is killed while it is in native code takes the process with it."""
    answer = subprocess.run(
        [sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=60, check=False
    )

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "closed\nclosed\n", "")


def make_engine() -> Engine:
    return Engine("fake", FakeScorer, cache_entries=0, batch_tokens=None, queue_tokens=9)


def test_engines_that_have_ended_are_not_kept(no_leaks: None) -> None:
    registry = Registry()

    for _ in range(5):
        job = Job(1)
        registry.lease("key", make_engine).submit(job, "fox", iter([(0, "a fox")]))
        job.future.result(10)
        registry.release("key", wait=False)
        registry.close_all()
        gc.collect()

    assert len(registry._ending) == 1


class Gated(FakeScorer):
    """Stands at its gate in each forward pass."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def forward(self, pairs: Any) -> list[float]:
        self.entered.set()
        assert self.gate.wait(30)
        return super().forward(pairs)


def test_a_scorer_is_not_opened_again_while_it_is_being_closed(no_leaks: None) -> None:
    """Its old worker may be inside, and two must not be."""
    scorer = Gated()
    reranker = Reranker(scorer)
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(reranker.rank, "q", ["a"])
        assert scorer.entered.wait(20)
        closing = threads.submit(reranker.close)
        while not reranker._leases._released or reranker._leases.primary._open is not None:
            time.sleep(0.001)

        with pytest.raises(ConfigError, match="closed with its last reranker"):
            Reranker(scorer)
        scorer.gate.set()
        closing.result(20)
        assert len(call.result(20)) == 1


def test_an_engine_that_its_own_worker_collects_ends(no_leaks: None) -> None:
    """The garbage collector runs anywhere: here, as the worker is about to sleep."""
    scorer = FakeScorer()
    held = [Reranker(scorer)]
    held[0].rank("q", ["a"])
    engine = held[0]._leases.primary
    dispatcher = engine._open
    assert dispatcher is not None
    wait = dispatcher.queue.changed.wait

    def collect_first(timeout: float | None = None) -> bool:
        held.clear()
        gc.collect()
        return wait(timeout)

    dispatcher.queue.changed.wait = collect_first  # type: ignore[method-assign]
    job = Job(1)
    engine.submit(job, "q", iter([(0, "b")]))
    job.future.result(20)

    for thread in threading.enumerate():
        if thread.name.startswith("rerank-plugins"):
            thread.join(20)
    assert scorer.closed


async def test_a_call_that_meets_the_closing_is_told_so(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = Reranker(FakeScorer())
    threads = Engine.threads

    def close_after(engine: Engine, **options: Any) -> ThreadPoolExecutor:
        pool = threads(engine, **options)
        reranker.close()
        return pool

    monkeypatch.setattr(Engine, "threads", close_after)
    with pytest.raises(ClosedError):
        await reranker.arank("q", ["a"])


AFTER_THE_MAIN_THREAD = """
import asyncio, threading
from rerank_plugins import ClosedError, Reranker
from rerank_plugins.testing import FakeScorer

reranker = Reranker(FakeScorer())
reranker.rank("q", ["a"])


def late():
    threading.main_thread().join()
    try:
        asyncio.run(reranker.arank("q", ["b"]))
    except ClosedError:
        print("closed")


threading.Thread(target=late).start()
"""


def test_a_call_while_the_interpreter_ends_is_told_so() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", AFTER_THE_MAIN_THREAD],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "closed\n", "")


def test_ctrl_c_between_asking_and_queueing_leaves_nobody_waiting(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reranker(FakeScorer()) as reranker:
        reranker.rank("q", ["a"])
        cache = reranker._leases.primary._cache
        promote = cache.promote

        def interrupt(keys: Any) -> Any:
            monkeypatch.setattr(cache, "promote", promote)
            raise KeyboardInterrupt

        monkeypatch.setattr(cache, "promote", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reranker.rank("q", ["b"])

        assert len(reranker.rank("q", ["b"], timeout_s=20)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_a_language_is_being_loaded_harms_no_child() -> None:
    detector = default_detector()

    with detector._lock:
        child = os.fork()
        if child == 0:
            # Whatever happens, the child must not go on as a second test run.
            status = 1
            with contextlib.suppress(BaseException):
                status = 0 if detector._lock.acquire(timeout=10) else 2
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_loop_may_end_with_callers_in_line_for_room(no_leaks: None) -> None:
    scorer = Gated(batch_tokens=1)
    with Reranker(scorer, queue_tokens=2, when_full="wait") as reranker:

        async def abandon() -> None:
            tasks = [asyncio.create_task(reranker.arank("q", [f"d{i}"])) for i in range(20)]
            while reranker.stats()["fake"].tokens_waiting < 2:
                await asyncio.sleep(0.001)
            del tasks

        for _ in range(3):
            asyncio.run(abandon())
        scorer.gate.set()

        assert len(reranker.rank("q", ["after"], timeout_s=20)) == 1


def test_a_loop_that_stands_still_holds_nobody_up_in_the_line_for_room(no_leaks: None) -> None:
    scorer = Gated(batch_tokens=1)
    standing, go_on = threading.Event(), threading.Event()
    with Reranker(scorer, queue_tokens=1, when_full="wait") as reranker:
        reranker._leases.primary.scorer()
        dispatcher = reranker._leases.primary._open
        assert dispatcher is not None

        async def stand_still() -> None:
            tasks = [asyncio.create_task(reranker.arank("q", [f"d{i}"])) for i in range(12)]
            # More than are let in at a time; some have come through before the queue was full.
            while len(dispatcher.queue.line) <= INVITED_TURNS:
                await asyncio.sleep(0.001)
            standing.set()
            assert go_on.wait(30)
            await asyncio.gather(*tasks)

        with ThreadPoolExecutor(1) as threads:
            loop = threads.submit(asyncio.run, stand_still())
            assert standing.wait(20)
            scorer.gate.set()

            assert len(reranker.rank("q", ["after"], timeout_s=20)) == 1
            go_on.set()
            loop.result(20)
