"""What a postprocessor adds to the metadata of copies, and who sees it."""

from __future__ import annotations

import copy
import json
import threading
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import (
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)

from rerank_plugins.testing import FakeScorer

Door = Any
Run = Any


async def test_the_scores_stand_in_the_metadata(
    run: Run, door: Door, nodes: Any, query: str
) -> None:
    nodes[2].score = None
    nodes[3].score = np.float32(0.5)
    first, second, *_ = await run(door(FakeScorer(name="judge")), nodes, query_str=query)
    assert first.metadata == {
        "page": 2,
        "tags": ["fruit"],
        "relevance_score": first.score,
        "reranked_by": "judge",
    }
    assert second.metadata["retrieval_score"] == 0.5
    assert type(second.metadata["retrieval_score"]) is float
    json.loads(second.to_json())


async def test_what_was_given_stays_as_it_was(run: Run, door: Door, nodes: Any, query: str) -> None:
    nodes[0].node.excluded_llm_metadata_keys = ["page"]
    before = copy.deepcopy(nodes)
    ranked = await run(door(), nodes, query_str=query)
    for each in ranked:
        each.metadata["page"] = each.metadata["mine"] = "edited"
        each.node.excluded_embed_metadata_keys.append("edited")
        each.node.excluded_llm_metadata_keys.append("edited")
        each.node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="edited")
        each.node.text = "edited"
        each.score = -1.0
    assert [each.to_dict() for each in nodes] == [each.to_dict() for each in before]


async def test_metadata_that_cannot_be_copied_is_shared(run: Run, door: Door) -> None:
    lock, tags = threading.Lock(), ["fruit"]
    node = TextNode(text="apple", metadata={"lock": lock, "tags": tags})

    (ranked,) = await run(door(), [NodeWithScore(node=node)], query_str="apple")

    assert ranked.metadata["lock"] is lock
    assert ranked.metadata["tags"] is tags
    assert node.metadata == {"lock": lock, "tags": tags}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), np.float32("nan")])
async def test_a_score_that_strict_json_cannot_hold_is_left_out(
    run: Run, door: Door, nodes: Any, query: str, score: float
) -> None:
    nodes[2].score = score
    (ranked,) = await run(door(top_n=1), nodes, query_str=query)
    assert "retrieval_score" not in ranked.metadata
    json.dumps(ranked.metadata, allow_nan=False)


async def test_a_retrieval_score_that_was_there_is_kept_and_hidden(
    run: Run, door: Door, nodes: Any, query: str
) -> None:
    """LlamaIndex's own reranker leaves one, and its own score as the node's."""
    nodes[2].node.metadata["retrieval_score"] = 0.125
    (ranked,) = await run(door(top_n=1), nodes, query_str=query)
    assert ranked.metadata["retrieval_score"] == 0.125
    assert "retrieval_score" not in ranked.get_content(MetadataMode.LLM)


async def test_a_key_of_the_users_does_not_cost_the_retrievers_score(
    run: Run, door: Door, nodes: Any, query: str
) -> None:
    nodes[2].node.metadata["reranked_by"] = "hand"
    (ranked,) = await run(door(top_n=1), nodes, query_str=query)
    assert ranked.metadata["retrieval_score"] == nodes[2].score


async def test_neither_prompts_nor_embeddings_see_our_keys(
    run: Run, door: Door, nodes: Any
) -> None:
    nodes[0].node.excluded_llm_metadata_keys = ["page"]
    before = {each.node_id: each for each in nodes}
    for each in await run(door(top_n=None), nodes, query_str="pear"):
        for mode in (MetadataMode.EMBED, MetadataMode.LLM, MetadataMode.NONE):
            assert each.get_content(mode) == before[each.node_id].get_content(mode)


async def test_two_reranks_keep_the_retrievers_score(
    run: Run, door: Door, nodes: Any, query: str
) -> None:
    first = await run(door(FakeScorer(name="fast"), top_n=None), nodes, query_str=query)
    second = await run(door(FakeScorer(lambda q, d: 0.0, name="slow")), first, query_str=query)
    assert {each.metadata["reranked_by"] for each in second} == {"slow"}
    assert {each.metadata["relevance_score"] for each in second} == {0.5}
    came = {each.node_id: each.score for each in nodes}
    assert {each.node_id: each.metadata["retrieval_score"] for each in second} == came
