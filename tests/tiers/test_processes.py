"""One shared cache for several processes: at once, after a fork, and after an exit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rerank_plugins import Reranker
from rerank_plugins.registry import ENGINES
from rerank_plugins.testing import FakeScorer
from rerank_plugins.tiers import shared
from rerank_plugins.tiers.shared import SharedCache
from tests.tiers.under_load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins.results import Ranking

PATIENT = {"shared_cache_timeout_s": 30}

RANKS = """
import json, sys
from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer
from rerank_plugins.tiers import shared

shared.FLUSH_WAIT_S = 30.0
where, number = sys.argv[1], int(sys.argv[2])
scorer = FakeScorer(lambda query, document: len(document) / 8)
wrong = []
with Reranker(scorer, shared_cache=where, shared_cache_timeout_s=30, cache_entries=10) as reranker:
    reranker.warmup()
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(60):
        documents = ["x" * (1 + (i * 7 + k) % 200) for k in range(40)]
        for document in reranker.rank("fox", documents):
            if document.logit != len(document.text) / 8:
                wrong.append(document)
    stats = reranker.stats()["fake"]
print(json.dumps([wrong, stats.shared_errors, stats.shared_skipped]))
"""


def test_processes_write_and_read_one_cache_at_once(where: str) -> None:
    """They all begin once the last of them is ready."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, where, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("go\n", timeout=100) for process in processes]

    assert answers == [("[[], 0, 0]\n", "")] * 3
    scorer = FakeScorer()
    with Reranker(scorer, shared_cache=where, **PATIENT) as reranker:
        found = reranker.rank("fox", ["x" * (1 + k) for k in range(200)])
        assert all(d.cached and d.logit == len(d.text) / 8 for d in found)


EXITS = """
import sys
from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer
from rerank_plugins.tiers import shared
shared.FLUSH_WAIT_S = 30.0
reranker = Reranker(FakeScorer(), shared_cache=sys.argv[1], shared_cache_timeout_s=30)
reranker.rank("fox", [f"a fox {i}" for i in range(1000)])
"""


def test_what_was_scored_just_before_an_exit_is_written(where: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", EXITS, where],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (answer.returncode, answer.stderr) == (0, "")
    with Reranker(FakeScorer(), shared_cache=where, **PATIENT) as reranker:
        assert all(d.cached for d in reranker.rank("fox", [f"a fox {i}" for i in range(1000)]))


def _in_child(do: Callable[[], None]) -> int:
    """Do it in a forked child; returns how that ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            do()
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_and_its_parent_share_it(where: str, no_leaks: None) -> None:
    def rank(query: str) -> Ranking:
        return reranker.rank(query, [f"a fox {i}" for i in range(100)])

    with Reranker(FakeScorer(), shared_cache=where, **PATIENT) as reranker:
        rank("fox")
        while reranker._leases.primary._shared._writing:  # type: ignore[union-attr]
            time.sleep(0.001)

        def child() -> None:
            assert all(d.cached for d in rank("fox"))
            assert reranker.stats()["fake"].shared_hits == 100
            assert not any(d.cached for d in rank("a"))
            reranker.close()

        assert _in_child(child) == 0
        assert all(d.cached for d in rank("a"))
        assert reranker.stats()["fake"].shared_errors == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_under_load_harm_nothing(where: str) -> None:
    def logit(query: str, document: str) -> float:
        return len(document) + len(query) / 8

    def child() -> None:
        assert reranker.rank("fox", ["xx"])[0].logit == 2.375

    with Reranker(FakeScorer(logit), shared_cache=where, **PATIENT) as reranker:
        with Load(reranker, logit) as load:
            load.hits_come()
            for _ in range(10):
                assert _in_child(child) == 0
                load.go_on(5)
            load.hits_come()
        assert reranker.stats()["fake"].shared_errors == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_asks_every_engine_to_pause_and_to_go_on(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    before_fork = SharedCache.before_fork

    def noted(shared: SharedCache) -> Callable[[], None]:
        go_on = before_fork(shared)
        told.append("pause")

        def noted_too() -> None:
            told.append("go on")
            go_on()

        return noted_too

    monkeypatch.setattr(SharedCache, "before_fork", noted)
    with Reranker(FakeScorer(), shared_cache=where, **PATIENT) as reranker:
        reranker.rank("fox", ["a fox"])
        assert _in_child(lambda: None) == 0
        assert told == ["pause", "go on"]
        reranker.clear_cache()
        assert reranker.rank("fox", ["a fox"])[0].logit == 1.0


def test_threads_that_fork_at_the_same_time_let_each_store_go_on(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "FORK_WAIT_S", 0.01)
    with Reranker(FakeScorer(), shared_cache=where, **PATIENT) as reranker:
        reranker.rank("fox", ["a fox"])
        ENGINES.before_fork()
        other = threading.Thread(target=ENGINES.before_fork)
        other.start()
        other.join()
        ENGINES.after_fork_in_parent()

        reranker.clear_cache()
        reranker.rank("fox", ["a fox"])
        assert reranker.stats()["fake"].shared_errors == 0
