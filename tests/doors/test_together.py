"""Both frameworks at once, over one engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_plugins import Reranker
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.testing import FakeScorer

TEXTS = [f"w{i} w{i * 7 % 31} w{i * 3 % 17}" for i in range(40)]
DOCUMENTS = [Document(page_content=text, id=str(i)) for i, text in enumerate(TEXTS)]
NODES = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(TEXTS)]
QUERIES = [f"w{i} w{i + 1}" for i in range(12)]

Answer = list[tuple[str, float]]


def _of_documents(documents: object) -> Answer:
    return [(str(d.id), d.metadata["relevance_score"]) for d in documents]  # type: ignore[attr-defined]


def _of_nodes(nodes: list[NodeWithScore]) -> Answer:
    return [(node.node_id, node.get_score()) for node in nodes]


async def test_threads_and_tasks_of_both_frameworks_get_the_serial_scores() -> None:
    with Reranker(FakeScorer()) as serial:
        expected = {
            query: [(str(d.index), d.score) for d in serial.rank(query, TEXTS)] for query in QUERIES
        }
    scorer = FakeScorer(delay_s=0.001)
    with Reranker(scorer) as reranker:
        compressor = RerankCompressor(reranker=reranker, top_n=None)
        postprocessor = RerankPostprocessor(reranker=reranker, top_n=None)

        def by_thread(number: int) -> None:
            for i in range(len(QUERIES)):
                query = QUERIES[(i + number) % len(QUERIES)]
                if number % 2:
                    found = _of_documents(compressor.compress_documents(DOCUMENTS, query))
                else:
                    found = _of_nodes(postprocessor.postprocess_nodes(NODES, query_str=query))
                assert found == expected[query]

        async def by_task(number: int) -> None:
            query = QUERIES[number % len(QUERIES)]
            if number % 2:
                found = _of_documents(await compressor.acompress_documents(DOCUMENTS, query))
            else:
                found = _of_nodes(await postprocessor.apostprocess_nodes(NODES, query_str=query))
            assert found == expected[query]

        async def cancelled(number: int) -> None:
            task = asyncio.create_task(
                compressor.acompress_documents(DOCUMENTS, f"nobody waits {number}")
            )
            await asyncio.sleep(0.002 * number)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        with ThreadPoolExecutor(8) as threads:
            await asyncio.gather(
                *(asyncio.wrap_future(threads.submit(by_thread, i)) for i in range(8)),
                *(by_task(i) for i in range(200)),
                *(cancelled(i) for i in range(3)),
            )

    wanted = {pair: n for pair, n in scorer.pairs_scored.items() if "nobody" not in pair[0]}
    assert set(wanted.values()) == {1}
    assert len(wanted) == len(QUERIES) * len(set(TEXTS))


def test_equal_settings_meet_in_one_engine_across_frameworks() -> None:
    compressor = RerankCompressor(model="lexical", cache_entries=777, top_n=None)
    postprocessor = RerankPostprocessor(model="lexical", cache_entries=777, top_n=None)
    compressor.compress_documents(DOCUMENTS, QUERIES[0])

    found = _of_nodes(postprocessor.postprocess_nodes(NODES, query_str=QUERIES[0]))

    stats = compressor._open().stats()["lexical"]
    assert stats == postprocessor._open().stats()["lexical"]
    assert (stats.cache_hits, stats.pairs_scored) == (len(TEXTS), len(set(TEXTS)))
    assert found == _of_documents(compressor.compress_documents(DOCUMENTS, QUERIES[0]))
