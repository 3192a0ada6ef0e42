"""One door, many callers: threads, tasks, and an event loop that stays free."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from rerank_plugins.langchain import RerankCompressor, RerankRetriever
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_plugins import Reranker

    Faked = Callable[..., Reranker]

CALLS = 50
WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]


def query(i: int) -> str:
    return f"{WORDS[i % 8]} {WORDS[i // 8]} {i}"


def documents(i: int) -> list[Document]:
    return [
        Document(" ".join(WORDS[j % 8 : j % 8 + 1 + (i + j) % 3]), id=f"{i}-{j}")
        for j in range(3 + i % 5)
    ]


def serial(reranker: Reranker) -> list[Sequence[Document]]:
    compressor = RerankCompressor(reranker=reranker)
    return [compressor.compress_documents(documents(i), query(i)) for i in range(CALLS)]


async def test_fifty_calls_at_once_equal_fifty_in_a_row(faked: Faked) -> None:
    compressor = RerankCompressor(reranker=faked(FakeScorer(delay_s=0.001)))

    at_once = await asyncio.gather(
        *(compressor.acompress_documents(documents(i), query(i)) for i in range(CALLS))
    )

    assert list(at_once) == serial(faked())


async def test_fifty_retrievals_at_once_equal_fifty_in_a_row(faked: Faked) -> None:
    numbers = {query(i): i for i in range(CALLS)}
    retriever = RerankRetriever(
        base_retriever=RunnableLambda(lambda text: documents(numbers[text])), reranker=faked()
    )

    at_once = await asyncio.gather(*(retriever.ainvoke(text) for text in numbers))

    assert list(at_once) == serial(faked())


def test_threads_get_what_one_thread_gets(faked: Faked) -> None:
    compressor = RerankCompressor(reranker=faked(FakeScorer(delay_s=0.001)))

    with ThreadPoolExecutor(8) as pool:
        in_threads = list(
            pool.map(lambda i: compressor.compress_documents(documents(i), query(i)), range(CALLS))
        )

    assert in_threads == serial(faked())


def test_threads_that_meet_at_the_first_use_open_one_model(
    opened_by_name: list[FakeScorer],
) -> None:
    compressor = RerankCompressor(model="lexical")
    together = threading.Barrier(8)

    def first_use(i: int) -> Sequence[Document]:
        together.wait(30)
        return compressor.compress_documents(documents(i), query(i))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(first_use, range(8)))

    assert len(opened_by_name) == 1


async def test_the_event_loop_is_free_while_the_model_works(faked: Faked) -> None:
    entered, release = threading.Event(), threading.Event()

    def wait(_: str, __: str) -> float:
        entered.set()
        # Only the loop can end this wait: were it blocked, the score would tell.
        return 1.0 if release.wait(10) else -1.0

    compressor = RerankCompressor(reranker=faked(FakeScorer(wait, activation="logit")))
    calls = [
        asyncio.create_task(compressor.acompress_documents([Document(f"{i}")], "q"))
        for i in range(3)
    ]
    await asyncio.to_thread(entered.wait, 10)

    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(call.done() for call in calls)
    release.set()

    kept = await asyncio.gather(*calls)
    assert [document.metadata["relevance_score"] for (document,) in kept] == [1.0] * 3


async def test_a_slow_first_call_does_not_hold_back_another_door(faked: Faked) -> None:
    release = threading.Event()
    slow = RerankCompressor(
        reranker=faked(FakeScorer(lambda _, __: 1.0 if release.wait(10) else -1.0))
    )
    fast = RerankCompressor(reranker=faked())

    waiting = asyncio.create_task(slow.acompress_documents([Document("red")], "red"))
    (kept,) = await fast.acompress_documents([Document("red")], "red")
    assert kept.page_content == "red"
    assert not waiting.done()

    release.set()
    await waiting
