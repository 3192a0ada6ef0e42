"""What is told where a model fails, falls back, runs out of memory or has replicas."""

from __future__ import annotations

import asyncio
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import Reranker, SwitchEvent
from rerank_plugins.breaker import FAILURES_TO_OPEN
from rerank_plugins.testing import FakeScorer
from tests.observability.conftest import Gated, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rerank_plugins import RerankConfig


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeScorer]:
    """Scorers by model name: what is opened in place of real ones."""
    named = {"big": FakeScorer(name="big", poison="poison")}

    def open_it(config: RerankConfig) -> FakeScorer:
        return named.setdefault(config.model, FakeScorer(name=config.model))

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_it)
    return named


@pytest.fixture
def falling_back(models: dict[str, FakeScorer], seen: Seen) -> Iterator[Reranker]:
    with Reranker(
        "big", on_error="fallback", fallback=("lexical",), language_detector=None, observers=[seen]
    ) as reranker:
        yield reranker


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_that_fell_back_says_who_answered_and_why(
    asynchronous: bool, falling_back: Reranker, seen: Seen
) -> None:
    if asynchronous:
        asyncio.run(falling_back.arank("red fox", ["poison", "a fox"]))
    else:
        falling_back.rank("red fox", ["poison", "a fox"])

    (event,) = seen.requests
    assert (event.model, event.scorer, event.outcome) == ("big", "lexical", "fallback")
    assert (event.error, event.pairs) == ("ScoringError", 2)
    # Of both attempts.
    assert event.tokens == 2 * 3
    assert event.duration_s == pytest.approx(sum(astuple(event.stages)))
    assert {batch.model for batch in seen.batches} == {"big", "lexical"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_order_as_given_answers_by_that_name(
    asynchronous: bool, models: dict[str, FakeScorer], seen: Seen
) -> None:
    with Reranker(
        "big",
        on_error="fallback",
        fallback=("retrieval_order",),
        language_detector=None,
        observers=[seen],
    ) as reranker:
        if asynchronous:
            asyncio.run(reranker.arank("red fox", ["poison", "a fox"]))
        else:
            reranker.rank("red fox", ["poison", "a fox"])

    (event,) = seen.requests
    assert (event.scorer, event.outcome, event.cached) == ("retrieval_order", "fallback", 0)


def test_a_call_that_nobody_answers_is_an_error_of_the_first(
    models: dict[str, FakeScorer], falling_back: Reranker, seen: Seen
) -> None:
    models["lexical"] = FakeScorer(name="lexical", poison="poison")

    with pytest.raises(Exception, match="big failed"):
        falling_back.rank("red fox", ["poison"])

    (event,) = seen.requests
    assert (event.scorer, event.outcome, event.error) == ("", "error", "ScoringError")


def test_a_late_model_is_the_reason_of_a_fallback(
    models: dict[str, FakeScorer], falling_back: Reranker, seen: Seen
) -> None:
    gated = models["big"] = Gated(name="big")
    try:
        falling_back.rank("red fox", ["a fox"], timeout_s=1)
    finally:
        gated.gate.set()

    (event,) = seen.requests
    assert (event.scorer, event.outcome, event.error) == (
        "lexical",
        "fallback",
        "RerankTimeoutError",
    )
    # What the model took is in the account, and what is late of it changes nothing of it.
    assert event.stages.forward >= 0.5
    assert event.duration_s == pytest.approx(sum(astuple(event.stages)))


def test_a_circuit_breaker_that_opens_is_told_of_once(falling_back: Reranker, seen: Seen) -> None:
    for i in range(FAILURES_TO_OPEN + 2):
        falling_back.rank("red fox", [f"poison {i}"])

    switches = [event for event in seen.events if isinstance(event, SwitchEvent)]
    assert switches == [SwitchEvent("big", "open", "ScoringError")]


class Small(FakeScorer):
    """Has memory for one pair at a time."""

    def forward(self, pairs: Sequence[Any]) -> list[float]:
        if len(pairs) > 1:
            raise MemoryError("no room")
        return super().forward(pairs)


def test_a_batch_that_did_not_fit_is_told_of_as_that(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(Small(), observers=[seen])

    reranker.rank("red fox", ["one", "two"])

    assert [(e.pairs, e.error) for e in seen.batches] == [(2, "out_of_memory"), (1, ""), (1, "")]
    assert [e.outcome for e in seen.requests] == ["ok"]


def test_each_replica_is_told_of_by_its_number(monkeypatch: pytest.MonkeyPatch, seen: Seen) -> None:
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", lambda _: FakeScorer())
    with Reranker("owner/model", replicas=2, observers=[seen]) as reranker:
        reranker.warmup()

    assert [(e.model, e.scorer) for e in seen.loads] == [("owner/model", "fake")] * 2
    assert sorted(e.replica for e in seen.batches) == [0, 1]


def test_waiting_for_room_in_the_queue_is_queue(
    seen: Seen, gated: Gated, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(gated, observers=[seen], queue_tokens=1, when_full="wait")

    async def calls() -> None:
        tasks = [asyncio.create_task(reranker.arank("red fox", ["one"]))]
        assert await asyncio.to_thread(gated.entered.wait, 30)
        tasks.append(asyncio.create_task(reranker.arank("red fox", ["two"])))
        while not reranker.stats()["fake"].tokens_waiting:
            await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(reranker.arank("red fox", ["three"])))
        await asyncio.sleep(0.1)
        gated.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(calls())

    last = max(seen.requests, key=lambda event: event.started_s)
    assert last.stages.queue >= 0.05
    assert last.duration_s == pytest.approx(sum(astuple(last.stages)))
