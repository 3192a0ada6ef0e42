"""Where the time of a call went: every moment in one stage."""

from __future__ import annotations

import threading
import time
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import Reranker, ScoringError, StageSeconds
from rerank_plugins.jobs import CachedPair, Job
from rerank_plugins.reporting import Report
from rerank_plugins.stages import StageClock
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.observability.conftest import Gated, Seen


class Ticking:
    """A clock that is told what time it is."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_moment_is_charged_to_one_stage() -> None:
    now = Ticking()
    clock = StageClock(now)
    for seconds, step in (
        (1, lambda: clock.work("clean")),
        (2, lambda: clock.work("look_up")),
        (4, lambda: clock.work("encode")),
        (8, lambda: clock.work(None)),
        (16, lambda: clock.wait("forward")),
        (32, lambda: clock.wait("finish")),
        (64, lambda: None),
    ):
        now.now += seconds
        step()

    assert clock.end() == StageSeconds(
        open=0, queue=1 + 16, clean=2, look_up=4, encode=8, forward=32, finish=64
    )


def test_own_work_goes_before_what_is_waited_for_meanwhile() -> None:
    now = Ticking()
    clock = StageClock(now)
    clock.work("encode")
    now.now += 1
    clock.wait("forward")
    now.now += 2
    clock.work(None)
    now.now += 4

    assert clock.end() == StageSeconds(encode=3, forward=4)


def test_what_comes_after_the_end_is_not_charged() -> None:
    now = Ticking()
    clock = StageClock(now)
    first = clock.end()
    now.now += 1
    clock.work("encode")
    now.now += 1

    assert clock.end() == first


@pytest.mark.parametrize("failed", [False, True])
def test_from_the_last_answer_on_it_is_finish(failed: bool) -> None:
    now, job = Ticking(), Job(1)
    clock = job.clock = StageClock(now)
    now.now += 1
    if failed:
        job.fail(ScoringError("no"))
    else:
        job.deliver(0, CachedPair(1.0, truncated=False))
        job.settle()
    now.now += 2

    assert clock.end() == StageSeconds(queue=1, finish=2)


def test_what_is_still_at_an_attempt_that_is_over_charges_nothing() -> None:
    report, first, second = Report("m", None), Job(1), Job(1)

    report.attempt(first)
    assert first.clock is not None
    report.attempt(second, falls_back=True)

    assert first.clock is None
    assert second.clock is not None


PAUSE_S = 0.05
"""Long beside what a call takes otherwise, and no bound of a test from above."""


def pausing(text: str) -> str:
    time.sleep(PAUSE_S)
    return text


class SlowToEncode(FakeScorer):
    def encode(self, query: str, documents: Sequence[str], **settings: Any) -> Any:
        time.sleep(PAUSE_S)
        return super().encode(query, documents, **settings)


def longest(stages: StageSeconds) -> str:
    return max(StageSeconds.__dataclass_fields__, key=lambda name: getattr(stages, name))


@pytest.mark.parametrize(
    ("stage", "scorer", "settings"),
    [
        ("clean", FakeScorer, {"normalizer": pausing}),
        ("encode", SlowToEncode, {"normalizer": None}),
        ("forward", lambda: FakeScorer(delay_s=PAUSE_S), {"normalizer": None}),
    ],
)
def test_a_stage_that_takes_long_is_told_as_the_longest(
    stage: str,
    scorer: Callable[[], FakeScorer],
    settings: dict[str, Any],
    seen: Seen,
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(scorer(), observers=[seen], language_detector=None, **settings)

    reranker.rank("red fox", ["a fox"])

    (event,) = seen.requests
    assert getattr(event.stages, stage) >= PAUSE_S
    assert event.duration_s == pytest.approx(sum(astuple(event.stages)))


def test_opening_the_model_is_a_stage_of_the_first_call_alone(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*_: object) -> FakeScorer:
        time.sleep(PAUSE_S)
        return FakeScorer()

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", slowly)
    with Reranker("owner/model", observers=[seen]) as reranker:
        reranker.rank("red fox", ["a fox"])
        reranker.rank("red fox", ["a dog"])

    first, second = seen.requests
    assert first.stages.open >= PAUSE_S
    assert second.stages.open == 0
    assert seen.loads[0].duration_s >= PAUSE_S


def test_waiting_behind_another_request_is_queue_and_not_forward(
    seen: Seen,
    gated: Gated,
    rank_behind: Callable[..., None],
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(gated, observers=[seen])
    rank_behind(reranker, "one", "two", pause_s=PAUSE_S, there=lambda stats: stats.tokens_waiting)

    one, two = sorted(seen.requests, key=lambda event: event.started_s)
    assert one.stages.forward >= PAUSE_S
    assert two.stages.queue >= PAUSE_S
    for event in (one, two):
        assert event.duration_s == pytest.approx(sum(astuple(event.stages)))


def test_pairs_that_another_request_is_scoring_are_waited_for_as_forward(
    seen: Seen,
    gated: Gated,
    rank_behind: Callable[..., None],
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(gated, observers=[seen])
    rank_behind(reranker, "same", "same", pause_s=PAUSE_S, there=lambda stats: stats.pairs_joined)

    _, joined = sorted(seen.requests, key=lambda event: event.started_s)
    assert joined.stages.forward >= PAUSE_S
    assert (joined.tokens, joined.cached) == (0, 0)


def test_pairs_joined_while_they_wait_begin_with_their_batch(
    seen: Seen, gated: Gated, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(gated, observers=[seen])
    threads = [
        threading.Thread(target=reranker.rank, args=("red fox", [document]))
        for document in ("one", "two", "two")
    ]
    threads[0].start()
    assert gated.entered.wait(30)
    threads[1].start()
    while not reranker.stats()["fake"].tokens_waiting:
        time.sleep(0.001)
    threads[2].start()
    while not reranker.stats()["fake"].pairs_joined:
        time.sleep(0.001)
    time.sleep(PAUSE_S)
    gated.gate.set()
    for thread in threads:
        thread.join(30)

    joined = next(event for event in seen.requests if not event.tokens)
    assert joined.stages.queue >= PAUSE_S
    assert joined.stages.forward > 0


def test_a_call_that_failed_has_stages_too(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(
        FakeScorer(poison="poison", delay_s=PAUSE_S), observers=[seen], language_detector=None
    )

    with pytest.raises(ScoringError):
        reranker.rank("red fox", ["poison"])

    (event,) = seen.requests
    assert event.stages.forward >= PAUSE_S
    assert event.duration_s == pytest.approx(sum(astuple(event.stages)))


async def test_a_call_on_an_event_loop_has_the_same_stages(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(SlowToEncode(delay_s=PAUSE_S), observers=[seen])

    await reranker.arank("red fox", [f"document {i}" for i in range(100)])

    (event,) = seen.requests
    assert event.stages.encode >= 2 * PAUSE_S
    assert event.stages.forward > 0
    assert event.duration_s == pytest.approx(sum(astuple(event.stages)))


def test_what_the_cache_answers_is_never_in_forward(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(observers=[seen])
    reranker.rank("red fox", ["a fox"])

    reranker.rank("red fox", ["a fox"])

    assert seen.requests[1].stages.forward == seen.requests[1].stages.encode == 0
    assert seen.requests[1].stages.look_up > 0
