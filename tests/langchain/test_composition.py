"""The doors inside the classes of langchain_classic that they are made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
)
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.runnables import RunnableLambda

from rerank_plugins import InputError
from rerank_plugins.langchain import RerankCompressor, RerankCrossEncoder
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rerank_plugins import Reranker

    Faked = Callable[..., Reranker]
    Compress = Callable[..., Awaitable[Sequence[Document]]]
    Invoke = Callable[..., Awaitable[list[Document]]]

DOCUMENTS = [
    Document("a Fox", id="a"),
    Document("nothing", id="b"),
    Document("the red fox", id="c"),
    Document("red", id="d"),
]


class Keep(BaseDocumentTransformer):
    """Keeps the documents whose text holds a word."""

    def __init__(self, word: str) -> None:
        self.word = word

    def transform_documents(
        self, documents: Sequence[Document], **kwargs: Any
    ) -> Sequence[Document]:
        return tuple(document for document in documents if self.word in document.page_content)


def ids(documents: Sequence[Document]) -> list[str | None]:
    return [document.id for document in documents]


async def test_in_a_contextual_compression_retriever(faked: Faked, invoke: Invoke) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=RerankCompressor(reranker=faked(), top_n=2),
        base_retriever=RunnableLambda(lambda _: DOCUMENTS),
    )

    found = await invoke(retriever, "red fox")

    assert ids(found) == ["c", "a"]
    assert all(type(document.metadata["relevance_score"]) is float for document in found)
    assert not any(document.metadata for document in DOCUMENTS)


async def test_in_a_pipeline_after_a_filter(faked: Faked, compress: Compress) -> None:
    pipeline = DocumentCompressorPipeline(
        transformers=[Keep("red"), RerankCompressor(reranker=faked())]
    )

    assert ids(await compress(pipeline, DOCUMENTS)) == ["c", "d"]


async def test_in_a_pipeline_after_a_filter_that_leaves_nothing(
    faked: Faked, compress: Compress
) -> None:
    pipeline = DocumentCompressorPipeline(
        transformers=[Keep("green"), RerankCompressor(reranker=faked())]
    )

    assert list(await compress(pipeline, DOCUMENTS)) == []


async def test_in_a_pipeline_before_another_reranker(faked: Faked, compress: Compress) -> None:
    shortest = FakeScorer(lambda _, document: -float(len(document)), name="shortest")
    pipeline = DocumentCompressorPipeline(
        transformers=[
            RerankCompressor(reranker=faked(), top_n=3),
            RerankCompressor(reranker=faked(shortest), top_n=2),
        ]
    )

    kept = await compress(pipeline, DOCUMENTS)

    assert ids(kept) == ["d", "a"]
    assert {document.metadata["reranked_by"] for document in kept} == {"shortest"}


async def test_a_cross_encoder_ranks_as_the_compressor_does(
    faked: Faked, compress: Compress
) -> None:
    reranker = faked()
    classic = CrossEncoderReranker(model=RerankCrossEncoder(reranker=reranker), top_n=3)

    kept = await compress(classic, DOCUMENTS)

    assert ids(kept) == ids(await compress(RerankCompressor(reranker=reranker), DOCUMENTS))


async def test_a_cross_encoder_has_nothing_to_say_of_nothing(
    opened_by_name: list[FakeScorer], compress: Compress
) -> None:
    encoder = RerankCrossEncoder(model="lexical")

    assert encoder.score([]) == []
    assert await compress(CrossEncoderReranker(model=encoder), []) == []
    assert opened_by_name == []


def test_a_cross_encoder_scores_pairs_in_input_order(faked: Faked) -> None:
    reranker = faked(FakeScorer(activation="logit"))
    encoder = RerankCrossEncoder(reranker=reranker)
    pairs = [("fox", "nothing"), ("red fox", "the red fox"), ("fox", "a Fox"), ("fox", "nothing")]

    scores = encoder.score(pairs)

    assert scores == [0.0, 2.0, 1.0, 0.0]
    assert all(type(score) is float for score in scores)


def test_a_cross_encoder_names_the_pair_that_it_cannot_score(faked: Faked) -> None:
    with pytest.raises(InputError, match=r"pairs\[1\]\[0\] is blank"):
        RerankCrossEncoder(reranker=faked()).score([("fox", "a"), ("", "b")])
