"""Who answered, in the metadata, where the model of a compressor could not."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from langchain_core.documents import Document

from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from rerank_plugins import Reranker

    Compress = Callable[..., Awaitable[Sequence[Document]]]
    Faked = Callable[..., Reranker]

TEXTS = ["rain", "a fox", "the red fox"]
HANG_S = 60


def documents() -> list[Document]:
    return [Document(text) for text in TEXTS]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def gated(gate: threading.Event, entered: threading.Event) -> FakeScorer:
    def wait(query: str, document: str) -> float:
        entered.set()
        assert gate.wait(HANG_S)
        return 1.0

    return FakeScorer(wait)


@pytest.mark.parametrize(
    ("link", "order"), [("lexical", [2, 1, 0]), ("retrieval_order", [0, 1, 2])]
)
async def test_a_dead_model_is_answered_for(
    faked: Faked, compress: Compress, link: str, order: list[int]
) -> None:
    reranker = faked(FakeScorer(poison="fox"), on_error="fallback", fallback=(link,))

    kept = await compress(RerankCompressor(reranker=reranker, top_n=None), documents())

    assert [document.page_content for document in kept] == [TEXTS[i] for i in order]
    assert {document.metadata["reranked_by"] for document in kept} == {link}
    scores = [document.metadata["relevance_score"] for document in kept]
    assert sorted(set(scores), reverse=True) == scores


async def test_a_threshold_of_the_model_is_not_one_of_its_fallback(
    faked: Faked, compress: Compress
) -> None:
    reranker = faked(FakeScorer(poison="fox"), on_error="fallback", fallback=("retrieval_order",))
    compressor = RerankCompressor(reranker=reranker, top_n=2, score_threshold=0.9)

    assert len(await compress(compressor, documents())) == 2


async def test_a_late_model_is_answered_for(
    faked: Faked, compress: Compress, gate: threading.Event
) -> None:
    scorer = gated(gate, threading.Event())
    reranker = faked(scorer, on_error="fallback", fallback=("lexical",), timeout_s=0.3)

    kept = await compress(RerankCompressor(reranker=reranker), documents())

    assert {document.metadata["reranked_by"] for document in kept} == {"lexical"}


async def test_a_full_queue_is_answered_for(
    faked: Faked, compress: Compress, gate: threading.Event
) -> None:
    entered = threading.Event()
    reranker = faked(
        gated(gate, entered), on_error="fallback", fallback=("lexical",), queue_tokens=1
    )
    waiting = [asyncio.create_task(reranker.arank("a", ["in the scorer"]))]
    assert await asyncio.to_thread(entered.wait, HANG_S)
    waiting.append(asyncio.create_task(reranker.arank("a", ["in the queue"])))
    async with asyncio.timeout(HANG_S):
        while not any(stats.tokens_waiting for stats in reranker.stats().values()):
            await asyncio.sleep(0.001)

    kept = await compress(RerankCompressor(reranker=reranker), documents())

    assert {document.metadata["reranked_by"] for document in kept} == {"lexical"}
    gate.set()
    assert [ranking.scorer for ranking in await asyncio.gather(*waiting)] == ["fake", "fake"]
