"""Duplicates, candidates and instructions through both frameworks, by their settings' names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_plugins import Reranker
from rerank_plugins.langchain import RerankCompressor, RerankCrossEncoder
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

QUERY = "red fox"
NEARLY = "a red fox eats rodents birds and fruit in fields and woods"
TEXTS = ["fox", NEARLY, "weather", "fox", f"{NEARLY}."]

Answer = list[tuple[str, int]]
"""Ids, and the page that each one's metadata names."""


class Ask(Protocol):
    async def __call__(self, texts: Sequence[str], **settings: Any) -> Answer: ...


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> FakeScorer:
    """The scorer that every model opens as."""
    fake = FakeScorer(instruction="find facts")
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", lambda _: fake)
    return fake


async def through_langchain(texts: Sequence[str], **settings: Any) -> Answer:
    documents = [Document(text, id=f"n{i}", metadata={"page": i}) for i, text in enumerate(texts)]
    door = RerankCompressor(top_n=None, **settings)
    found = door.compress_documents(documents, QUERY)
    assert found == await door.acompress_documents(documents, QUERY)
    return [(str(document.id), document.metadata["page"]) for document in found]


async def through_llama_index(texts: Sequence[str], **settings: Any) -> Answer:
    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=f"n{i}", metadata={"page": i}))
        for i, text in enumerate(texts)
    ]
    door = RerankPostprocessor(top_n=None, metadata_mode="none", **settings)
    found = door.postprocess_nodes(nodes, query_str=QUERY)
    assert found == await door.apostprocess_nodes(nodes, query_str=QUERY)
    return [(node.node_id, node.metadata["page"]) for node in found]


@pytest.fixture(params=[through_langchain, through_llama_index])
def ask(request: pytest.FixtureRequest, scorer: FakeScorer) -> Ask:
    return request.param  # type: ignore[no-any-return]  # pytest types no parameters


async def test_kept_duplicates_have_ids_and_metadata_of_their_own(
    ask: Ask, scorer: FakeScorer
) -> None:
    found = await ask(TEXTS, near_duplicates=0.7)

    assert found == [("n1", 1), ("n4", 4), ("n0", 0), ("n3", 3), ("n2", 2)]
    assert len(scorer.pairs_scored) == 3


async def test_dropped_documents_do_not_come_back(ask: Ask) -> None:
    assert await ask(TEXTS, duplicates="drop") == [("n1", 1), ("n4", 4), ("n0", 0), ("n2", 2)]
    assert await ask(TEXTS, duplicates="drop", near_duplicates=0.7, max_candidates=1) == [("n1", 1)]


async def test_the_choice_of_a_reranker_that_stands_holds_too(ask: Ask) -> None:
    with Reranker(FakeScorer(), duplicates="drop") as reranker:
        found = await ask(TEXTS, reranker=reranker)

    assert [name for name, _ in found] == ["n1", "n4", "n0", "n2"]


async def test_the_instruction_reaches_the_model(ask: Ask, scorer: FakeScorer) -> None:
    await ask(["fox"], instruction="find verbs")
    await ask(["fox"])

    assert [pair for batch in scorer.batches for pair in batch] == [
        ("find verbs: red fox", "fox"),
        ("find facts: red fox", "fox"),
    ]


async def test_the_instruction_of_a_reranker_that_stands_reaches_the_model(ask: Ask) -> None:
    own = FakeScorer(instruction="find facts")

    with Reranker(own, instruction="find verbs") as reranker:
        await ask(["fox"], reranker=reranker)

    assert own.batches == [[("find verbs: red fox", "fox")]]


def test_a_cross_encoder_scores_every_pair_and_follows_the_instruction(scorer: FakeScorer) -> None:
    encoder = RerankCrossEncoder(
        duplicates="drop", max_candidates=1, instruction="find verbs", activation="logit"
    )

    assert encoder.score([(QUERY, "fox"), (QUERY, "red"), (QUERY, "fox")]) == [1.0, 1.0, 1.0]
    assert set(scorer.pairs_scored) == {
        ("find verbs: red fox", "fox"),
        ("find verbs: red fox", "red"),
    }
