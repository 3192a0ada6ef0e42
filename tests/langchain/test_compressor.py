"""What `RerankCompressor` promises of the documents that it takes and gives."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from pydantic import ValidationError

from rerank_plugins import InputError, InputTypeError, Reranker, ScoringError
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    Compress = Callable[..., Awaitable[Sequence[Document]]]
    Faked = Callable[..., Reranker]

TEXTS = ["a Fox", "nothing", "the red fox", "red"]


def texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


async def test_documents_come_best_first_with_their_scores(
    faked: Faked, compress: Compress
) -> None:
    reranker = faked()
    compressor = RerankCompressor(reranker=reranker, top_n=None)

    kept = await compress(compressor, [Document(text) for text in TEXTS])

    assert texts(kept) == ["the red fox", "a Fox", "red", "nothing"]
    assert [document.metadata for document in kept] == [
        {"relevance_score": item.score, "reranked_by": "fake"}
        for item in reranker.rank("red fox", TEXTS)
    ]
    assert all(type(document.metadata["relevance_score"]) is float for document in kept)


@given(
    documents=st.lists(st.text(alphabet="abc \n\t\u200b"), max_size=12),
    top_n=st.none() | st.integers(1, 14),
    score_threshold=st.none() | st.floats(0, 1),
    min_results=st.integers(0, 4),
)
def test_order_and_scores_are_the_engines(
    documents: list[str], top_n: int | None, score_threshold: float | None, min_results: int
) -> None:
    keep: dict[str, Any] = {
        "top_n": top_n,
        "score_threshold": score_threshold,
        "min_results": min_results,
    }
    with Reranker(FakeScorer()) as reranker:
        kept = RerankCompressor(reranker=reranker, **keep).compress_documents(
            [Document(text, id=str(i)) for i, text in enumerate(documents)], "a b c"
        )
        ranking = reranker.rank("a b c", documents, **keep)

    assert [(d.id, d.page_content, d.metadata["relevance_score"]) for d in kept] == [
        (str(item.index), item.text, item.score) for item in ranking
    ]


async def test_nothing_in_is_nothing_out_and_loads_no_model(
    opened_by_name: list[FakeScorer], compress: Compress
) -> None:
    assert await compress(RerankCompressor(model="lexical"), []) == []
    assert await compress(RerankCompressor(model="lexical"), (), "") == []
    assert opened_by_name == []


class Page(Document):
    """A document of an application's own kind."""

    number: int


async def test_ids_and_subclasses_are_kept(faked: Faked, compress: Compress) -> None:
    documents = [
        Page("red fox", id="p-1", number=7, metadata={"source": "atlas"}),
        Document("red", id=12),
        Document.model_construct(page_content="", id=13, metadata={}),
    ]

    kept = await compress(RerankCompressor(reranker=faked()), documents)

    assert [(type(d), d.id) for d in kept] == [(Page, "p-1"), (Document, "12"), (Document, 13)]
    assert isinstance(kept[0], Page)
    assert (kept[0].number, kept[0].metadata["source"]) == (7, "atlas")


async def test_ties_keep_the_order_given(faked: Faked, compress: Compress) -> None:
    documents = [Document("red", id=str(i)) for i in range(20)]

    kept = await compress(RerankCompressor(reranker=faked(), top_n=None), documents)

    assert [document.id for document in kept] == [str(i) for i in range(20)]


@pytest.mark.parametrize(("top_n", "count"), [(None, 4), (1, 1), (4, 4), (99, 4)])
async def test_top_n_bounds_what_is_kept(
    faked: Faked, compress: Compress, top_n: int | None, count: int
) -> None:
    compressor = RerankCompressor(reranker=faked(), top_n=top_n)

    kept = await compress(compressor, [Document(text) for text in TEXTS])

    assert len(kept) == count
    assert kept[0].page_content == "the red fox"


async def test_three_documents_are_kept_unless_told(faked: Faked, compress: Compress) -> None:
    kept = await compress(RerankCompressor(reranker=faked()), [Document(text) for text in TEXTS])

    assert texts(kept) == ["the red fox", "a Fox", "red"]


@pytest.mark.parametrize("top_n", [0, -1])
async def test_a_top_n_below_one_is_refused(faked: Faked, compress: Compress, top_n: int) -> None:
    with pytest.raises(ValidationError, match=r"top_n\n.*greater than or equal to 1"):
        RerankCompressor(reranker=faked(), top_n=top_n)
    compressor = RerankCompressor(reranker=faked())
    compressor.top_n = top_n
    with pytest.raises(InputError, match="top_n must be an int of at least 1"):
        await compress(compressor, [Document("red")])


@pytest.mark.parametrize(
    ("options", "kept_texts"),
    [
        ({"score_threshold": 0.7}, ["the red fox", "a Fox", "red"]),
        ({"score_threshold": 0.8}, ["the red fox"]),
        ({"score_threshold": 0.99}, []),
        ({"score_threshold": 0.99, "min_results": 2}, ["the red fox", "a Fox"]),
        ({"score_threshold": 0.7, "top_n": 2}, ["the red fox", "a Fox"]),
    ],
)
async def test_a_threshold_drops_what_scores_lower(
    faked: Faked, compress: Compress, options: dict[str, Any], kept_texts: list[str]
) -> None:
    compressor = RerankCompressor(reranker=faked(), **options)

    assert texts(await compress(compressor, [Document(text) for text in TEXTS])) == kept_texts


async def test_any_sequence_of_documents_will_do(faked: Faked, compress: Compress) -> None:
    documents = tuple(Document(text) for text in TEXTS)

    kept = await compress(RerankCompressor(reranker=faked()), documents)

    assert isinstance(kept, list)
    assert texts(kept) == ["the red fox", "a Fox", "red"]


async def test_blank_documents_come_last_and_are_never_scored(
    faked: Faked, compress: Compress
) -> None:
    scorer = FakeScorer(lambda _, __: -50.0, activation="logit")
    documents = [Document(""), Document(" \n"), Document("red")]

    kept = await compress(RerankCompressor(reranker=faked(scorer)), documents)

    assert texts(kept) == ["red", "", " \n"]
    assert list(scorer.pairs_scored) == [("red fox", "red")]
    json.dumps([document.metadata for document in kept], allow_nan=False)


async def test_content_that_is_no_text_is_refused_by_index(
    faked: Faked, compress: Compress
) -> None:
    documents = [Document("red"), Document.model_construct(page_content=None, metadata={})]

    with pytest.raises(InputTypeError, match=r"documents\[1\] must be str, got NoneType"):
        await compress(RerankCompressor(reranker=faked()), documents)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b"], r"documents\[0\] must be a Document, got str"),
        ([Document("a"), {"page_content": "b"}], r"documents\[1\] must be a Document, got dict"),
        (None, "documents must be a sequence of Document, got NoneType"),
    ],
)
async def test_what_is_no_document_is_refused_by_index(
    faked: Faked, compress: Compress, given: Any, message: str
) -> None:
    with pytest.raises(InputTypeError, match=message):
        await compress(RerankCompressor(reranker=faked()), given)


def fails_midway() -> Iterator[Document]:
    yield Document("red")
    raise TypeError("the source broke off")


async def test_a_source_of_documents_fails_with_its_own_error(
    faked: Faked, compress: Compress
) -> None:
    with pytest.raises(TypeError, match="the source broke off"):
        await compress(RerankCompressor(reranker=faked()), fails_midway())


@pytest.mark.parametrize(
    "text_fn",
    [
        lambda document: document.page_content.split(maxsplit=1)[0],
        lambda document: next(iter(document.page_content.split())),
        lambda document: {"red": "red"}[document.page_content],
    ],
    ids=["IndexError", "StopIteration", "KeyError"],
)
async def test_a_text_fn_that_fails_is_an_error_that_names_the_document(
    faked: Faked, compress: Compress, request: pytest.FixtureRequest, text_fn: Any
) -> None:
    compressor = RerankCompressor(reranker=faked(), text_fn=text_fn)

    with pytest.raises(ScoringError, match=r"documents\[1\] could not be read: \w+(Error|ation)"):
        await compress(compressor, [Document("red"), Document("")])


async def test_duplicates_are_scored_once_and_all_returned(
    faked: Faked, compress: Compress
) -> None:
    scorer = FakeScorer()
    document = Document("red", id="same", metadata={"n": 1})

    kept = await compress(RerankCompressor(reranker=faked(scorer)), [document] * 3)

    assert [d.id for d in kept] == ["same"] * 3
    assert len({id(d.metadata) for d in kept}) == 3
    assert scorer.pairs_scored["red fox", "red"] == 1


@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf])
async def test_a_logit_that_is_no_number_is_an_error_and_no_rank(
    faked: Faked, compress: Compress, logit: float
) -> None:
    scorer = FakeScorer(lambda _, document: logit if document == "red" else 1.0)

    with pytest.raises(ScoringError, match=rf"documents\[3\].*{logit}"):
        await compress(RerankCompressor(reranker=faked(scorer)), [Document(t) for t in TEXTS])


async def test_text_fn_says_what_is_scored_and_not_what_is_returned(
    faked: Faked, compress: Compress
) -> None:
    documents = [Document("a", metadata={"title": "cat"}), Document("b", metadata={"title": "fox"})]
    compressor = RerankCompressor(
        reranker=faked(), text_fn=lambda d: f"{d.metadata['title']} {d.page_content}"
    )

    assert texts(await compress(compressor, documents)) == ["b", "a"]


async def test_a_blank_query_is_refused(faked: Faked, compress: Compress) -> None:
    with pytest.raises(InputError, match="query is blank"):
        await compress(RerankCompressor(reranker=faked()), [Document("red")], " ")
