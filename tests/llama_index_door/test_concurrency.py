"""Many at once: the same answers as one by one, on an event loop that stays free."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.testing import FakeScorer

Door = Any
WORDS = ["apple", "pear", "plum", "fig", "pie", "tart", "cake", "red", "green", "sweet"]


def _query(i: int) -> str:
    return f"{WORDS[i % 10]} {WORDS[(i * 3 + 1) % 10]} number{i % 25}"


def _nodes(i: int) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(id_=f"{k}", text=f"{WORDS[k % 10]} {WORDS[(k * 7 + 3) % 10]} item {k}"),
            score=float(k),
        )
        for k in range(i % 5, i % 5 + 12)
    ]


def _outcome(ranked: list[NodeWithScore]) -> list[dict[str, Any]]:
    return [each.to_dict() for each in ranked]


async def test_fifty_at_once_answer_as_one_by_one(door: Door) -> None:
    serial, scorer = door(), FakeScorer()
    expected = [
        _outcome(serial.postprocess_nodes(_nodes(i), query_str=_query(i))) for i in range(50)
    ]
    post = door(scorer)
    ranked = await asyncio.gather(
        *(post.apostprocess_nodes(_nodes(i), query_str=_query(i)) for i in range(50))
    )
    assert [_outcome(each) for each in ranked] == expected
    assert set(scorer.pairs_scored.values()) == {1}


def test_threads_answer_as_one_by_one(door: Door) -> None:
    serial, post = door(), door()
    expected = [
        _outcome(serial.postprocess_nodes(_nodes(i), query_str=_query(i))) for i in range(20)
    ]
    with ThreadPoolExecutor(8) as pool:
        ranked = pool.map(
            lambda i: post.postprocess_nodes(_nodes(i), query_str=_query(i)), range(20)
        )
        assert [_outcome(each) for each in ranked] == expected


async def test_other_tasks_go_on_while_the_model_works(
    door: Door, nodes: Any, query: str, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a thread was held for the time of the call")

    monkeypatch.setattr(asyncio, "to_thread", no_thread)
    scorer = gated()
    task = asyncio.create_task(door(scorer).apostprocess_nodes(nodes, query_str=query))
    await scorer.entered.wait()
    # This line runs while the forward pass waits for it.
    scorer.released.set()
    assert len(await task) == len(nodes)


async def test_callers_wait_without_holding_threads(door: Door, query: str, gated: Any) -> None:
    scorer = gated(queries=40)
    post = door(scorer)
    tasks = [
        asyncio.create_task(post.apostprocess_nodes(_nodes(0), query_str=f"{query} {i}"))
        for i in range(40)
    ]
    # All forty are cleaned and encoded while the first forward pass still runs.
    await scorer.encoded.wait()
    scorer.released.set()
    assert [len(ranked) for ranked in await asyncio.gather(*tasks)] == [5] * 40


def test_other_ways_in_share_scores_and_cache(door: Door, nodes: Any, query: str) -> None:
    scorer = FakeScorer()
    post = door(scorer, top_n=None)
    texts = [each.get_content(MetadataMode.EMBED) for each in nodes]
    scores = {r.index: r.score for r in post._open().rank(query, texts)}
    ranked = post.postprocess_nodes(nodes, query_str=query)
    assert {int(each.node_id[1:]): each.score for each in ranked} == scores
    assert scorer.pairs_scored.total() == len(nodes)


def test_both_frameworks_share_scores_and_cache(door: Door, nodes: Any, query: str) -> None:
    door_of_langchain = pytest.importorskip("rerank_plugins.langchain", exc_type=ImportError)
    from langchain_core.documents import Document

    scorer = FakeScorer()
    post = door(scorer, top_n=None, metadata_mode=MetadataMode.NONE)
    compressor = door_of_langchain.RerankCompressor(reranker=post.reranker, top_n=None)
    documents = [Document(page_content=each.text, id=each.node_id) for each in nodes]
    ranked = post.postprocess_nodes(nodes, query_str=query)
    compressed = compressor.compress_documents(documents, query)
    assert [(d.id, d.metadata["relevance_score"]) for d in compressed] == [
        (each.node_id, each.score) for each in ranked
    ]
    assert scorer.pairs_scored.total() == len(nodes)


def test_doors_of_equal_settings_share_one_engine(
    opened_by_name: list[FakeScorer], nodes: Any, query: str
) -> None:
    first, second = (
        RerankPostprocessor(model="lexical", language_detector=None, top_n=n) for n in (1, 2)
    )
    assert len(first.postprocess_nodes(nodes, query_str=query)) == 1
    assert len(second.postprocess_nodes(nodes, query_str=query)) == 2
    (scorer,) = opened_by_name
    assert scorer.pairs_scored.total() == len(nodes)
