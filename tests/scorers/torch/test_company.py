"""A pair gets one float32 logit: alone, in any company, from any thread, through either door."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rerank_plugins import Reranker
from tests.tiny_torch import ARCHITECTURES, make_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOLERANCE = 1e-5
QUERY = "where is the river bank"
DOCUMENTS = [document for _, document in make_pairs(160, seed=6)]
THREADS = 8


def assert_same(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_logit_is_the_same_alone_and_in_a_batch_of_500(
    name: str, model_of: Callable[..., Any]
) -> None:
    model = model_of(name)

    together = model.found(range(500))

    chosen = range(0, 500, 20)
    assert_same(np.concatenate([model.found([i]) for i in chosen]), together[chosen])
    assert_same(model.found(range(499, -1, -1))[::-1], together)


@pytest.fixture(scope="module", params=["xlm-roberta", "modernbert mean", "deberta-v2"])
def reranker(request: pytest.FixtureRequest, model_of: Callable[..., Any]) -> Iterator[Reranker]:
    """One that splits a request over many batches."""
    with Reranker(
        str(model_of(request.param).folder),
        backend="torch",
        device="cpu",
        precision="fp32",
        activation="logit",
        normalizer=None,
        batch_tokens=1500,
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(reranker: Reranker) -> np.ndarray:
    """The logits of DOCUMENTS, each scored in a request of its own."""
    return np.array([reranker.score([(QUERY, document)])[0] for document in DOCUMENTS])


def by_index(ranking: Any) -> np.ndarray:
    scores = np.empty(len(ranking))
    for document in ranking:
        scores[document.index] = document.score
    return scores


def test_a_logit_is_the_same_after_the_cache_is_cleared(
    reranker: Reranker, expected: np.ndarray
) -> None:
    cached = by_index(reranker.rank(QUERY, DOCUMENTS))
    reranker.clear_cache()
    (before,) = reranker.stats().values()

    again = by_index(reranker.rank(QUERY, DOCUMENTS))

    np.testing.assert_array_equal(cached, expected)
    assert_same(again, expected)
    (after,) = reranker.stats().values()
    assert after.pairs_scored - before.pairs_scored == len(set(DOCUMENTS))


def test_a_logit_is_the_same_from_eight_threads(reranker: Reranker, expected: np.ndarray) -> None:
    """Each thread with documents of its own order, so that pairs meet in other batches."""
    reranker.clear_cache()
    together = threading.Barrier(THREADS)

    def work(number: int) -> np.ndarray:
        order = np.random.default_rng(number).permutation(len(DOCUMENTS))
        together.wait()
        ranking = reranker.rank(QUERY, [DOCUMENTS[i] for i in order])
        scores = np.empty(len(DOCUMENTS))
        scores[order] = by_index(ranking)
        return scores

    with ThreadPoolExecutor(THREADS) as threads:
        for found in threads.map(work, range(THREADS)):
            assert_same(found, expected)


def test_a_logit_is_the_same_through_both_doors(reranker: Reranker, expected: np.ndarray) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from rerank_plugins.langchain import RerankCompressor
    from rerank_plugins.llama_index import RerankPostprocessor

    documents = [Document(page_content=text, id=str(i)) for i, text in enumerate(DOCUMENTS)]
    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(DOCUMENTS)
    ]

    reranker.clear_cache()
    compressed = RerankCompressor(reranker=reranker, top_n=None).compress_documents(
        documents, QUERY
    )
    reranker.clear_cache()
    postprocessed = RerankPostprocessor(reranker=reranker, top_n=None).postprocess_nodes(
        nodes, query_str=QUERY
    )

    of_documents = {str(d.id): d.metadata["relevance_score"] for d in compressed}
    of_nodes = {node.node_id: node.get_score() for node in postprocessed}
    numbers = [str(i) for i in range(len(DOCUMENTS))]
    assert_same([of_documents[number] for number in numbers], expected)
    assert_same([of_nodes[number] for number in numbers], expected)
