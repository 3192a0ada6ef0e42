"""What a compressor adds to the metadata of copies, and what stays as it was."""

from __future__ import annotations

import copy
import json
import math
import pickle
import threading
from typing import TYPE_CHECKING

import pytest
from langchain_core.documents import Document

from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rerank_plugins import Reranker

    Compress = Callable[..., Awaitable[Sequence[Document]]]
    Faked = Callable[..., Reranker]

TEXTS = ["a Fox", "nothing", "the red fox", "red"]


async def test_the_documents_given_are_not_changed(faked: Faked, compress: Compress) -> None:
    documents = [
        Document(text, id=str(i), metadata={"relevance_score": i, "tags": ["x", {"y": i}]})
        for i, text in enumerate(TEXTS)
    ]
    before, pickled = copy.deepcopy(documents), pickle.dumps(documents)

    kept = await compress(RerankCompressor(reranker=faked(), top_n=None), documents)
    for document in kept:
        document.metadata["mine"] = True

    assert documents == before
    assert pickle.dumps(documents) == pickled
    assert not {id(document) for document in kept} & {id(document) for document in documents}


async def test_an_upstream_score_becomes_the_retrieval_score(
    faked: Faked, compress: Compress
) -> None:
    document = Document("red", metadata={"relevance_score": 0.25})

    (kept,) = await compress(RerankCompressor(reranker=faked()), [document])

    assert kept.metadata == {
        "relevance_score": pytest.approx(1 / (1 + math.exp(-1))),
        "retrieval_score": 0.25,
        "reranked_by": "fake",
    }


@pytest.mark.parametrize("score", [math.nan, math.inf])
async def test_an_upstream_score_that_strict_json_cannot_hold_is_left_out(
    faked: Faked, compress: Compress, score: float
) -> None:
    document = Document("red", metadata={"relevance_score": score})

    (kept,) = await compress(RerankCompressor(reranker=faked()), [document])

    assert "retrieval_score" not in kept.metadata
    json.dumps(kept.metadata, allow_nan=False)


async def test_metadata_that_cannot_be_copied_is_shared(faked: Faked, compress: Compress) -> None:
    lock, tags = threading.Lock(), ["x"]
    document = Document("red", metadata={"lock": lock, "tags": tags})

    (kept,) = await compress(RerankCompressor(reranker=faked()), [document])

    assert kept.metadata["lock"] is lock
    assert kept.metadata["tags"] is tags
    assert document.metadata == {"lock": lock, "tags": tags}


async def test_a_second_reranking_keeps_the_retrievers_score(
    faked: Faked, compress: Compress
) -> None:
    first = RerankCompressor(reranker=faked(FakeScorer(name="first")))
    second = RerankCompressor(reranker=faked(FakeScorer(lambda _, __: 0.0, name="second")))
    document = Document("red", metadata={"relevance_score": 0.25})

    (kept,) = await compress(second, await compress(first, [document]))

    assert kept.metadata == {
        "relevance_score": 0.5,
        "retrieval_score": 0.25,
        "reranked_by": "second",
    }
