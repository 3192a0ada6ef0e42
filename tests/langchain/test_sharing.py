"""The engine behind a LangChain door: shared, changed later, and let go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField, RunnableLambda

from rerank_plugins import ConfigError, Reranker
from rerank_plugins.langchain import RerankCompressor, RerankCrossEncoder, RerankRetriever
from rerank_plugins.registry import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins.testing import FakeScorer

    Faked = Callable[..., Reranker]

DOCUMENTS = [Document("a Fox"), Document("the red fox")]


def retriever(**settings: Any) -> RerankRetriever:
    return RerankRetriever(base_retriever=RunnableLambda(lambda _: DOCUMENTS), **settings)


DOORS = [
    pytest.param(RerankCompressor, id="compressor"),
    pytest.param(retriever, id="retriever"),
    pytest.param(RerankCrossEncoder, id="cross-encoder"),
]
every_door = pytest.mark.parametrize("make", DOORS)


def shout(text: str) -> str:
    return text.upper()


def test_doors_of_equal_settings_share_one_engine(opened_by_name: list[FakeScorer]) -> None:
    compressor = RerankCompressor(model="lexical", top_n=1)
    encoder = RerankCrossEncoder(model="lexical")

    (kept,) = compressor.compress_documents(DOCUMENTS, "red fox")
    (found,) = retriever(model="lexical", top_n=1).invoke("red fox")
    scores = encoder.score([("red fox", document.page_content) for document in DOCUMENTS])

    assert kept == found
    assert max(scores) == kept.metadata["relevance_score"]
    (scorer,) = opened_by_name
    assert set(scorer.pairs_scored.values()) == {1}


def test_a_door_and_a_reranker_share_engine_and_cache(opened_by_name: list[FakeScorer]) -> None:
    with Reranker("lexical") as reranker:
        ranking = reranker.rank("red fox", [document.page_content for document in DOCUMENTS])
        kept = RerankCompressor(model="lexical").compress_documents(DOCUMENTS, "red fox")
        again = reranker.rank("red fox", [document.page_content for document in kept])

    assert [d.metadata["relevance_score"] for d in kept] == [item.score for item in ranking]
    assert all(item.cached for item in again)
    assert sum(opened_by_name[0].pairs_scored.values()) == 2


def test_a_setting_assigned_later_is_the_one_used(opened_by_name: list[FakeScorer]) -> None:
    compressor = RerankCompressor(model="lexical", normalizer=None)
    compressor.compress_documents(DOCUMENTS, "RED FOX")

    compressor.normalizer = shout
    compressor.compress_documents(DOCUMENTS, "red fox")

    asked = {document for _, document in opened_by_name[0].pairs_scored}
    assert asked == {"a Fox", "the red fox", "A FOX", "THE RED FOX"}


@every_door
def test_a_reranker_assigned_later_lets_the_old_engine_go(
    faked: Faked, make: Callable[..., Any]
) -> None:
    before = len(ENGINES)
    door = make()
    opened = len(ENGINES)
    reranker = faked()

    door.reranker = reranker

    assert door._open() is reranker
    assert (opened - before, len(ENGINES) - before) == (1, 1)


@every_door
def test_a_reranker_assigned_beside_settings_is_refused_at_the_next_call(
    faked: Faked, make: Callable[..., Any]
) -> None:
    door, reranker = make(model="lexical"), faked()

    door.reranker = reranker
    with pytest.raises(ConfigError, match=r"reranker= has its own settings; leave out model$"):
        door._open()

    door.model = "embedded"
    assert door._open() is reranker
    door.timeout_s = 3
    with pytest.raises(ConfigError, match="leave out timeout_s"):
        door._open()


@every_door
def test_a_reranker_of_equal_settings_sees_what_is_behind_a_door(
    opened_by_name: list[FakeScorer], make: Callable[..., Any]
) -> None:
    door = make(model="lexical")
    with Reranker("lexical") as reranker:
        door._open().score([("red fox", "a fox")])
        assert reranker.stats()["lexical"].pairs_scored == 1
    # The one closes, the other goes on.
    assert door._open().score([("red fox", "a fox")])


def test_short_lived_copies_do_not_load_the_model_again(opened_by_name: list[FakeScorer]) -> None:
    """LangChain makes a new retriever for each call with configured fields."""
    configurable = retriever(model="lexical").configurable_fields(
        top_n=ConfigurableField(id="top_n")
    )

    for top_n in (1, 2, 1):
        found = configurable.invoke("red fox", {"configurable": {"top_n": top_n}})
        assert len(found) == top_n

    assert len(opened_by_name) == 1
    assert set(opened_by_name[0].pairs_scored.values()) == {1}


def test_a_door_that_is_gone_leaves_no_engine() -> None:
    before = len(ENGINES)

    door = RerankCompressor(model="lexical", cache_entries=77)
    assert len(ENGINES) == before + 1

    del door
    assert len(ENGINES) == before
