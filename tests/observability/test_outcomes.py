"""How a call ended is told, of every way to end."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import (
    ClosedError,
    InputError,
    Observer,
    QueueFullError,
    RequestEvent,
    Reranker,
    RerankTimeoutError,
    ScoringError,
)
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.observability.conftest import Gated, Seen


def outcomes(seen: Seen) -> list[tuple[str, str, str]]:
    return [(event.outcome, event.scorer, event.error) for event in seen.requests]


@pytest.mark.parametrize("method", ["rank", "score"])
def test_a_call_that_scored_is_ok(
    method: str, seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(observers=[seen])
    arguments: Any = ("red fox", ["a fox"]) if method == "rank" else ([("red fox", "a fox")],)

    getattr(reranker, method)(*arguments)
    asyncio.run(getattr(reranker, f"a{method}")(*arguments))

    assert outcomes(seen) == [("ok", "fake", "")] * 2


def test_no_documents_are_a_call_too(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(observers=[seen])

    reranker.rank("red fox", [])
    reranker.score([])

    assert outcomes(seen) == [("ok", "fake", ""), ("ok", "", "")]
    assert [event.pairs for event in seen.requests] == [0, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.rank(" ", ["a fox"]),
        lambda r: r.rank("red fox", ["a fox"], top_n=0),
        lambda r: r.rank("red fox", ["a fox", None]),
        lambda r: r.rank("red fox", ["a fox"], timeout_s=-1),
        lambda r: r.score([("red fox",)]),
        lambda r: r.score("red fox"),
        lambda r: asyncio.run(r.arank("red fox", 5)),
        lambda r: asyncio.run(r.ascore([("red fox", None)])),
    ],
)
def test_a_wrong_argument_is_told_of_once(
    call: Callable[[Reranker], object],
    seen: Seen,
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(observers=[seen])

    with pytest.raises(InputError) as raised:
        call(reranker)

    assert outcomes(seen) == [("invalid", "", type(raised.value).__name__)]


def test_a_scorer_that_fails_is_an_error(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(FakeScorer(poison="poison"), observers=[seen])

    with pytest.raises(ScoringError):
        reranker.rank("red fox", ["poison", "a fox"])

    assert outcomes(seen) == [("error", "", "ScoringError")]
    assert seen.requests[0].pairs == 2


async def test_what_is_late_is_a_timeout(
    seen: Seen, gated: Gated, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(gated, observers=[seen])

    with pytest.raises(RerankTimeoutError):
        await reranker.arank("red fox", ["a fox"], timeout_s=0.05)
    with pytest.raises(RerankTimeoutError):
        await asyncio.to_thread(reranker.rank, "red fox", ["a fox"], timeout_s=0.05)

    assert outcomes(seen) == [("timeout", "", "RerankTimeoutError")] * 2


async def test_a_caller_that_goes_away_cancels(
    seen: Seen, gated: Gated, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(gated, observers=[seen])
    task = asyncio.create_task(reranker.arank("red fox", ["a fox"]))
    assert await asyncio.to_thread(gated.entered.wait, 30)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert outcomes(seen) == [("cancelled", "", "CancelledError")]


async def test_a_full_queue_is_told_of(
    seen: Seen, gated: Gated, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(gated, observers=[seen], queue_tokens=1)
    first = asyncio.create_task(reranker.arank("red fox", ["one"]))
    assert await asyncio.to_thread(gated.entered.wait, 30)
    second = asyncio.create_task(reranker.arank("red fox", ["two"]))
    while not reranker.stats()["fake"].tokens_waiting:
        await asyncio.sleep(0.001)

    with pytest.raises(QueueFullError):
        await reranker.arank("red fox", ["three"])
    assert outcomes(seen) == [("queue_full", "", "QueueFullError")]
    gated.gate.set()
    await asyncio.gather(first, second)


def test_a_closed_reranker_is_told_of(seen: Seen) -> None:
    reranker = Reranker(FakeScorer(), observers=[seen])
    reranker.close()

    with pytest.raises(ClosedError):
        reranker.rank("red fox", ["a fox"])

    assert outcomes(seen) == [("closed", "", "ClosedError")]


WHOSE: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody's")


class WhoseTurn(Observer):
    """Notes the caller's context and thread."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def on_request(self, event: RequestEvent) -> None:
        self.seen.append((WHOSE.get(), threading.get_ident()))


async def test_a_request_is_told_of_in_its_callers_own_context_and_thread(
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    observer = WhoseTurn()
    reranker, _ = open_reranker(observers=[observer])

    async def one(name: str) -> None:
        WHOSE.set(name)
        await reranker.arank("red fox", [name])

    await asyncio.gather(one("a"), one("b"))
    assert sorted(observer.seen) == [("a", threading.get_ident()), ("b", threading.get_ident())]

    observer.seen.clear()
    WHOSE.set("mine")
    reranker.rank("red fox", ["c"])
    assert observer.seen == [("mine", threading.get_ident())]


def test_the_start_of_a_call_is_a_time_of_day(
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    monkeypatch.setattr("rerank_plugins.reporting.time.time", lambda: 1234.5)
    reranker, _ = open_reranker(observers=[seen])

    reranker.rank("red fox", ["a fox"])

    assert seen.requests[0].started_s == 1234.5
