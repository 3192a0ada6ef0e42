"""Engines that nobody holds any more: waited for at exit, and not kept beyond their end."""

from __future__ import annotations

import gc
import subprocess
import sys

from rerank_plugins.engine import Engine
from rerank_plugins.jobs import Job
from rerank_plugins.registry import Registry
from rerank_plugins.testing import FakeScorer

DROPPED = """
import time

from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer


class Slow(FakeScorer):
    def close(self):
        time.sleep(0.5)
        print("closed", flush=True)


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
