"""What a deadline that passed says of the model, with no clock: the test says when it has."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from rerank_plugins.attempts import attempts
from rerank_plugins.breaker import FAILURES_TO_OPEN, State
from rerank_plugins.engine import Engine
from rerank_plugins.jobs import Job
from rerank_plugins.requests import rank_call
from rerank_plugins.testing import FakeScorer

HANG_S = 30


class Stepwise(FakeScorer):
    """Scores one document at a time, each when the test says so."""

    def __init__(self) -> None:
        super().__init__(self._step, batch_tokens=1)
        self.entered: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)

    def _step(self, query: str, document: str) -> float:
        self.entered.put(document)
        assert self.go_on.acquire(timeout=HANG_S)
        return 1.0

    def step(self) -> None:
        """Let it end one document, and begin with the next."""
        self.go_on.release()
        self.entered.get(timeout=HANG_S)


@pytest.mark.parametrize(
    ("scored", "state"),
    [("nothing", State.OPEN), ("of others", State.CLOSED), ("of its own", State.OPEN)],
)
def test_a_call_that_is_late_because_the_model_was_at_others_is_no_failure_of_it(
    scored: str, state: State
) -> None:
    scorer = Stepwise()
    options: Any = {"cache_entries": 0, "batch_tokens": 1, "queue_tokens": 1000}
    engine = Engine("big", lambda: scorer, **options)
    others = Job(2 * FAILURES_TO_OPEN)
    engine.submit(others, "q", ((i, f"other{i}") for i in range(len(others.pairs))))
    scorer.entered.get(timeout=HANG_S)
    if scored == "of its own":
        others.cancel()
    for number in range(FAILURES_TO_OPEN):
        call = rank_call("q", [f"first{number}", f"second{number}"])
        attempt = next(attempts(call, primary=engine, timeout_s=600, chain=("lexical",)))
        with attempt:
            attempt.admit(engine)
            attempt.ask(engine, call.groups[0])
            engine.submit(call.job, "q", iter(enumerate(call.groups[0].documents)))
            for _ in range({"nothing": 0, "of others": 1, "of its own": 2}[scored]):
                scorer.step()
            raise TimeoutError
    scorer.go_on.release(100)
    engine.close()

    assert engine.breaker.state is state
