"""Inside LlamaIndex's own engines, tools and evaluators, with no model and no network."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.tools import RetrieverTool, ToolMetadata

Door = Any
BEST_TWO = ["n2", "n3"]


@pytest.fixture
def llm() -> MockLLM:
    """Completes with its prompt."""
    return MockLLM()


def _ids(answer: Any) -> list[str]:
    return [each.node_id for each in answer.source_nodes]


def _assert_prompt_is_clean(prompt: str) -> None:
    assert prompt.index("red apple pie with cream") < prompt.rindex("apple pie")
    assert "a green pear" not in prompt
    for key in ("relevance_score", "retrieval_score", "reranked_by"):
        assert key not in prompt


@pytest.mark.parametrize("way", ["query", "aquery"])
async def test_query_engine(
    way: str, door: Door, retriever: Any, llm: Any, query: str, recorder: Any
) -> None:
    post = door(top_n=2)
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=llm, node_postprocessors=[post], callback_manager=recorder.manager
    )
    answer = engine.query(query) if way == "query" else await engine.aquery(query)
    assert _ids(answer) == BEST_TWO
    assert answer.source_nodes[0].score > answer.source_nodes[1].score
    _assert_prompt_is_clean(str(answer))
    assert post.callback_manager is recorder.manager
    assert [what for what, *_ in recorder.legacy.seen] == ["start", "end"]
    assert len(recorder.spans.completed_spans) == 1


@pytest.mark.parametrize("way", ["chat", "achat"])
@pytest.mark.parametrize("engine_class", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_chat_engines(
    way: str, engine_class: Any, door: Door, retriever: Any, llm: Any, query: str
) -> None:
    engine = engine_class.from_defaults(
        retriever=retriever,
        llm=llm,
        memory=ChatMemoryBuffer.from_defaults(token_limit=2000, tokenizer_fn=str.split),
        node_postprocessors=[door(top_n=2)],
    )
    answer = engine.chat(query) if way == "chat" else await engine.achat(query)
    assert _ids(answer) == BEST_TWO
    _assert_prompt_is_clean(str(answer))


@pytest.mark.parametrize("way", ["call", "acall"])
async def test_retriever_tool(way: str, door: Door, retriever: Any, query: str) -> None:
    tool = RetrieverTool(
        retriever=retriever,
        metadata=ToolMetadata(name="search", description="finds things"),
        node_postprocessors=[door(top_n=2)],
    )
    output = tool.call(query) if way == "call" else await tool.acall(query)
    assert [each.node_id for each in output.raw_output] == BEST_TWO
    _assert_prompt_is_clean(output.content)


async def test_retriever_evaluator_asks_by_query_str(
    door: Door, retriever: Any, query: str
) -> None:
    evaluator = RetrieverEvaluator.from_metric_names(
        ["mrr", "hit_rate"], retriever=retriever, node_postprocessors=[door(top_n=2)]
    )
    outcome = await evaluator.aevaluate(query, ["n3"])
    assert outcome.retrieved_ids == BEST_TWO
    assert outcome.metric_vals_dict == {"mrr": 0.5, "hit_rate": 1.0}


async def test_an_index_with_a_threshold_behind_us(
    door: Door, nodes: Any, llm: Any, query: str
) -> None:
    index = VectorStoreIndex([each.node for each in nodes], embed_model=MockEmbedding(embed_dim=4))
    engine = index.as_query_engine(
        llm=llm,
        similarity_top_k=4,
        node_postprocessors=[door(), SimilarityPostprocessor(similarity_cutoff=0.8)],
    )
    assert _ids(await engine.aquery(query)) == BEST_TWO
    # The index still holds what it held: a second query finds nothing of the first.
    for stored in index.docstore.docs.values():
        assert stored.metadata.keys() == {"page", "tags"}
        assert stored.excluded_llm_metadata_keys == []


async def test_reranking_in_two_stages(door: Door, retriever: Any, llm: Any, query: str) -> None:
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=llm, node_postprocessors=[door(top_n=3), door(top_n=2)]
    )
    answer = await engine.aquery(query)
    assert _ids(answer) == BEST_TWO
    _assert_prompt_is_clean(str(answer))
