"""Replicas of a named model: the same answers, in a fork and at the end of a process too."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any

import pytest

from rerank_plugins import Reranker


@pytest.mark.parametrize("replicas", [2, ("cpu", "cpu")])
def test_replicas_of_a_named_model_give_the_same_answers(no_leaks: None, replicas: Any) -> None:
    with Reranker("lexical") as one, Reranker("lexical", replicas=replicas) as two:
        two.warmup()
        documents = [f"a fox and {i} hens" for i in range(200)]
        expected = [(d.index, d.logit) for d in one.rank("fox 7", documents)]

        assert [(d.index, d.logit) for d in two.rank("fox 7", documents)] == expected
        assert two.stats()["lexical"].replicas == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_opens_replicas_of_its_own(no_leaks: None) -> None:
    with Reranker("lexical", replicas=2, when_full="wait") as reranker:
        reranker.rank("a", ["a", "b"])
        child = os.fork()
        if child == 0:
            # Whatever happens, the child must not go on as a second test run.
            status = 1
            with contextlib.suppress(BaseException):
                found = reranker.rank("a b", ["a", "a b"], timeout_s=20)
                status = 0 if found[0].index == 1 else 2
            os._exit(status)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(reranker.rank("b", ["a", "b"], timeout_s=20)) == 2


BUSY_AT_EXIT = """
import threading
from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer

reranker = Reranker("lexical", replicas=2, when_full="wait", queue_tokens=1)
rude = Reranker(FakeScorer(delay_s=0.2))
for target in (reranker, rude):
    for i in range(20):
        threading.Thread(
            target=lambda i=i, target=target: target.rank(f"q{i}", ["a fox", "a hen"] * 50),
            daemon=True,
        ).start()
print("left", flush=True)
"""


def test_a_process_ends_with_requests_under_way(no_leaks: None) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", BUSY_AT_EXIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (answer.returncode, answer.stdout) == (0, "left\n")
    assert "Fatal" not in answer.stderr


SPAWNED = """
import multiprocessing
from rerank_plugins import Reranker


def best(reranker):
    return reranker.rank("red fox", ["a dog", "a red fox"])[0].index


if __name__ == "__main__":
    with Reranker("lexical") as reranker:
        reranker.rank("red fox", ["a dog"])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(best, [reranker]))
"""


def test_a_spawned_process_ranks_with_what_it_is_given(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(SPAWNED)
    answer = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False
    )

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "[1]\n", "")
