"""`RerankRetriever`: LangChain's own suite for retrievers, and what that does not ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from rerank_plugins import InputError, Reranker
from rerank_plugins.langchain import RerankRetriever
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from langchain_core.retrievers import BaseRetriever

    Faked = Callable[..., Reranker]
    Invoke = Callable[..., Awaitable[list[Document]]]

TEXTS = ["a Fox", "nothing", "the red fox", "red"]


def store() -> InMemoryVectorStore:
    made = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    made.add_texts(TEXTS, ids=[str(i) for i in range(len(TEXTS))])
    return made


class TestStandard(RetrieversIntegrationTests):
    """LangChain's standard tests over a vector store's retriever."""

    @pytest.fixture(autouse=True)
    def _reranker(self) -> Iterator[None]:
        with Reranker(FakeScorer()) as self._opened:
            yield

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RerankRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_retriever": store().as_retriever(), "reranker": self._opened}

    @property
    def retriever_query_example(self) -> str:
        return "red fox"

    @property
    def num_results_arg_name(self) -> str:
        return "top_n"


async def test_what_was_retrieved_comes_best_first(faked: Faked, invoke: Invoke) -> None:
    retriever = RerankRetriever(base_retriever=store().as_retriever(), reranker=faked(), top_n=2)

    found = await invoke(retriever, "a fox")

    assert [document.page_content for document in found] == ["a Fox", "the red fox"]
    assert [document.id for document in found] == ["0", "2"]
    assert [sorted(document.metadata) for document in found] == [
        ["relevance_score", "reranked_by"]
    ] * 2


async def test_any_runnable_that_returns_documents_is_a_base_retriever(
    faked: Faked, invoke: Invoke
) -> None:
    base = RunnableLambda(lambda query: [Document(query.upper()), Document(query)])
    retriever = RerankRetriever(base_retriever=base, reranker=faked(), top_n=1)

    (found,) = await invoke(retriever, "red")

    assert found.page_content == "RED"


async def test_a_call_may_bring_its_own_top_n(faked: Faked, invoke: Invoke) -> None:
    retriever = RerankRetriever(base_retriever=store().as_retriever(), reranker=faked(), top_n=2)

    assert len(await invoke(retriever, "red fox", top_n=1)) == 1
    assert len(await invoke(retriever, "red fox", top_n=None)) == 4
    assert len(await invoke(retriever, "red fox")) == 2
    with pytest.raises(InputError, match="top_n must be an int of at least 1"):
        await invoke(retriever, "red fox", top_n=0)


async def test_other_arguments_of_a_call_go_to_the_base_retriever(
    faked: Faked, invoke: Invoke
) -> None:
    retriever = RerankRetriever(base_retriever=store().as_retriever(), reranker=faked())

    assert len(await invoke(retriever, "red fox", k=2, top_n=None)) == 2
    (found,) = await invoke(retriever, "red fox", filter=lambda document: document.id == "1")
    assert found.page_content == "nothing"


async def test_the_base_retriever_hears_nothing_of_top_n(faked: Faked, invoke: Invoke) -> None:
    heard: list[dict[str, Any]] = []

    def base(query: str, **options: Any) -> list[Document]:
        heard.append(options)
        return [Document(query)]

    retriever = RerankRetriever(base_retriever=RunnableLambda(base), reranker=faked())
    await invoke(retriever, "red fox", top_n=1, k=9)

    assert heard == [{"k": 9}]


async def test_a_call_may_bring_what_the_reranker_is_told(faked: Faked, invoke: Invoke) -> None:
    heard: list[dict[str, Any]] = []

    def base(query: str, **options: Any) -> list[Document]:
        heard.append(options)
        return [Document(text) for text in ("fox", "red fox", "sky", "fox")]

    scorer = FakeScorer(instruction="find facts")
    reranker = faked(scorer, duplicates="keep", max_candidates=3)
    retriever = RerankRetriever(base_retriever=RunnableLambda(base), reranker=reranker, top_n=None)

    found = await invoke(
        retriever,
        "red fox",
        instruction="find verbs",
        duplicates="drop",
        near_duplicates=0.9,
        max_candidates=2,
        priority="bulk",
        timeout_s=30,
        k=9,
    )

    assert [document.page_content for document in found] == ["red fox", "fox"]
    assert {query for query, _ in scorer.pairs_scored} == {"find verbs: red fox"}
    assert heard == [{"k": 9}]
    # The settings stand for the next call.
    assert len(await invoke(retriever, "red fox")) == 4
    for wrong in ({"max_candidates": -1}, {"priority": "low"}, {"timeout_s": "soon"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
            await invoke(retriever, "red fox", **wrong)
    assert heard[1:] == [{}] * 4


async def test_nothing_retrieved_is_nothing_found(
    opened_by_name: list[FakeScorer], invoke: Invoke
) -> None:
    retriever = RerankRetriever(base_retriever=RunnableLambda(lambda _: []), model="lexical")

    assert await invoke(retriever, "red fox") == []
    assert opened_by_name == []


def test_a_base_retriever_is_asked_for() -> None:
    with pytest.raises(ValidationError, match=r"base_retriever\n.*required"):
        RerankRetriever()
    with pytest.raises(ValidationError, match=r"base_retriever\n.*instance of Runnable"):
        RerankRetriever(base_retriever=print)


async def test_batches_keep_queries_apart(faked: Faked) -> None:
    retriever = RerankRetriever(base_retriever=store().as_retriever(), reranker=faked(), top_n=1)
    queries = ["nothing", "a fox", "the"] * 5

    for found in (retriever.batch(queries), await retriever.abatch(queries)):
        assert [document.page_content for (document,) in found] == [
            "nothing",
            "a Fox",
            "the red fox",
        ] * 5


async def test_it_serves_in_a_chain_and_as_a_tool(faked: Faked, invoke: Invoke) -> None:
    retriever = RerankRetriever(base_retriever=store().as_retriever(), reranker=faked(), top_n=1)
    chain = retriever | (lambda found: [document.page_content for document in found])
    tool = create_retriever_tool(retriever, "search", "Finds documents.")

    assert await invoke(chain, "red fox") == ["the red fox"]
    assert await invoke(tool, {"query": "red fox"}) == "the red fox"
