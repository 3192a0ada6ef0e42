"""Who answered, in the metadata, where the model of a postprocessor could not."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import Reranker
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llama_index.core.schema import NodeWithScore

HANG_S = 60


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def falling(gate: threading.Event) -> Iterator[Callable[..., RerankPostprocessor]]:
    """A postprocessor over *scorer*, which falls back to the *link*."""
    opened: list[Reranker] = []

    def make(scorer: FakeScorer, link: str, **settings: Any) -> RerankPostprocessor:
        opened.append(Reranker(scorer, on_error="fallback", fallback=(link,), **settings))
        return RerankPostprocessor(reranker=opened[-1], top_n=4)

    yield make
    gate.set()
    for reranker in opened:
        reranker.close()


def gated(gate: threading.Event, entered: threading.Event) -> FakeScorer:
    def wait(query: str, document: str) -> float:
        entered.set()
        assert gate.wait(HANG_S)
        return 1.0

    return FakeScorer(wait)


def who(found: list[NodeWithScore]) -> set[str]:
    return {node.metadata["reranked_by"] for node in found}


@pytest.mark.parametrize(
    ("link", "order"),
    [("lexical", ["n2", "n3", "n1", "n0"]), ("retrieval_order", ["n0", "n1", "n2", "n3"])],
)
async def test_a_dead_model_is_answered_for(
    falling: Any, run: Any, query: str, nodes: list[NodeWithScore], link: str, order: list[str]
) -> None:
    found = await run(falling(FakeScorer(poison="apple"), link), nodes, query_str=query)

    assert [node.node.node_id for node in found] == order
    assert who(found) == {link}


async def test_a_late_model_is_answered_for(
    falling: Any, run: Any, query: str, nodes: list[NodeWithScore], gate: threading.Event
) -> None:
    post = falling(gated(gate, threading.Event()), "lexical", timeout_s=0.3)

    assert who(await run(post, nodes, query_str=query)) == {"lexical"}


async def test_a_full_queue_is_answered_for(
    falling: Any, run: Any, query: str, nodes: list[NodeWithScore], gate: threading.Event
) -> None:
    entered = threading.Event()
    post = falling(gated(gate, entered), "retrieval_order", queue_tokens=1)
    reranker: Reranker = post.reranker
    waiting = [asyncio.create_task(reranker.arank("a", ["in the scorer"]))]
    assert await asyncio.to_thread(entered.wait, HANG_S)
    waiting.append(asyncio.create_task(reranker.arank("a", ["in the queue"])))
    async with asyncio.timeout(HANG_S):
        while not any(stats.tokens_waiting for stats in reranker.stats().values()):
            await asyncio.sleep(0.001)

    assert who(await run(post, nodes, query_str=query)) == {"retrieval_order"}
    gate.set()
    assert [ranking.scorer for ranking in await asyncio.gather(*waiting)] == ["fake", "fake"]
