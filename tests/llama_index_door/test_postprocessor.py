"""What comes out of the postprocessor: order, scores, limits, and nodes that nobody else holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)

from rerank_plugins.errors import InputError, InputTypeError, ScoringError
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.ranking import BLANK_LOGIT
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

Door = Any
Run = Any


def _ids(nodes: list[NodeWithScore]) -> list[str]:
    return [each.node_id for each in nodes]


async def test_best_first_with_python_float_scores(
    run: Run, door: Door, nodes: Any, query: str
) -> None:
    ranked = await run(door(), nodes, query_str=query)
    assert _ids(ranked) == ["n2", "n3", "n1", "n0"]
    expected = [1 / (1 + np.exp(-logit)) for logit in (3.0, 2.0, 1.0, 0.0)]
    assert [each.score for each in ranked] == pytest.approx(expected)
    assert all(type(each.score) is float for each in ranked)


async def test_equal_scores_keep_the_retrievers_order(run: Run, door: Door, nodes: Any) -> None:
    ranked = await run(door(FakeScorer(lambda q, d: 1.0)), nodes, query_str="anything")
    assert _ids(ranked) == ["n0", "n1", "n2", "n3"]


async def test_a_missing_query_is_an_error(run: Run, door: Door, nodes: Any) -> None:
    with pytest.raises(ValueError, match=r"^Missing query bundle in extra info\.$"):
        await run(door(), nodes)
    with pytest.raises(ValueError, match="Missing query bundle"):
        await run(door(), [])


async def test_both_kinds_of_query_are_one_too_many(run: Run, door: Door, nodes: Any) -> None:
    with pytest.raises(ValueError, match="both query_str and query_bundle"):
        await run(door(), nodes, query_bundle=QueryBundle("a"), query_str="a")


async def test_a_blank_query_is_an_error(run: Run, door: Door, nodes: Any) -> None:
    with pytest.raises(InputError, match="query is blank"):
        await run(door(), nodes, query_str=" \n")


async def test_no_nodes_in_no_nodes_out_and_nothing_is_opened(
    run: Run, scorer: Any, door: Door
) -> None:
    assert await run(door(scorer), [], query_str="apple") == []
    assert await run(RerankPostprocessor(model="no/such-model"), [], query_str="apple") == []
    assert scorer.batches == []


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_n": None}, 4),
        ({"top_n": 2}, 2),
        ({"top_n": 99}, 4),
        ({"top_n": None, "score_threshold": 0.8}, 2),
        ({"top_n": 1, "score_threshold": 0.8}, 1),
        ({"score_threshold": 0.999}, 0),
        ({"score_threshold": 0.999, "min_results": 2}, 2),
    ],
)
async def test_limits(
    run: Run, door: Door, nodes: Any, query: str, settings: Any, kept: int
) -> None:
    ranked = await run(door(**settings), nodes, query_str=query)
    assert _ids(ranked) == ["n2", "n3", "n1", "n0"][:kept]


async def test_five_are_kept_where_nothing_is_said(run: Run, door: Door, nodes: Any) -> None:
    assert len(await run(door(), nodes * 2, query_str="apple")) == 5


@pytest.mark.parametrize("top_n", [0, -1])
async def test_top_n_below_one_is_an_error(
    run: Run, door: Door, nodes: Any, recorder: Any, top_n: int
) -> None:
    with pytest.raises(ValueError, match=r"top_n\n.*greater than or equal to 1"):
        RerankPostprocessor(top_n=top_n)
    post = door()
    post.top_n = top_n
    with pytest.raises(InputError, match="top_n must be an int of at least 1"):
        await run(post, nodes, query_str="apple")


async def test_a_misspelt_setting_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"top_k\n.*Extra inputs are not permitted"):
        RerankPostprocessor(top_k=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("mode", list(MetadataMode))
async def test_reranking_the_outcome_again_changes_nothing(
    run: Run, door: Door, nodes: Any, query: str, scorer: Any, mode: MetadataMode
) -> None:
    post = door(scorer, metadata_mode=mode)
    once = await run(post, nodes, query_str=query)
    twice = await run(post, once, query_str=query)
    assert [each.to_dict() for each in twice] == [each.to_dict() for each in once]
    assert scorer.pairs_scored.total() == len(nodes)
    (stats,) = post._open().stats().values()
    assert stats.cache_hits == len(nodes)


async def test_large_parts_of_a_node_are_not_copied(run: Run, door: Door) -> None:
    target = object()
    index = IndexNode(text="apple", index_id="i", obj=target, embedding=[0.1] * 2000)
    media = Node(
        text_resource=MediaResource(text="apple"), image_resource=MediaResource(data=b"png" * 999)
    )
    first, second = await run(
        door(), [NodeWithScore(node=index), NodeWithScore(node=media)], query_str="apple"
    )
    assert first.node is not index
    assert first.node.embedding is index.embedding
    assert first.node.obj is target
    assert second.node.image_resource is media.image_resource


class LabelNode(TextNode):
    """A node class of somebody's own."""

    label: str = ""

    def get_content(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> str:
        return f"{self.label} {super().get_content(metadata_mode)}"


KINDS: dict[str, Callable[[str], BaseNode]] = {
    "TextNode": lambda text: TextNode(text=text),
    "Document": lambda text: Document(text=text),
    "IndexNode": lambda text: IndexNode(text=text, index_id="i"),
    "ImageNode": lambda text: ImageNode(text=text, image_url="x.png"),
    "Node": lambda text: Node(text_resource=MediaResource(text=text)),
    "LabelNode": lambda text: LabelNode(label=text),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_nodes_of_every_kind(run: Run, door: Door, kind: str) -> None:
    make = KINDS[kind]
    given = [NodeWithScore(node=make(text)) for text in ("", "apple", "red apple")]
    ranked = await run(door(), given, query_str="red apple")
    assert [each.node_id for each in ranked] == [given[i].node_id for i in (2, 1, 0)]
    assert all(type(each.node) is type(given[0].node) for each in ranked)


async def test_any_iterable_of_nodes_will_do(run: Run, door: Door, nodes: Any, query: str) -> None:
    assert _ids(await run(door(), (each for each in nodes), query_str=query)) == [
        *("n2", "n3", "n1", "n0")
    ]
    assert _ids(await run(door(), tuple(nodes), query_str=query)) == ["n2", "n3", "n1", "n0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [NodeWithScore(node=TextNode(text="a")), TextNode(text="b")],
            r"nodes\[1\] .*, got TextNode",
        ),
        ([{"node": "a"}], r"nodes\[0\] must be a NodeWithScore, got dict"),
        ("abc", r"nodes\[0\] must be a NodeWithScore, got str"),
        (None, r"nodes must be a sequence of NodeWithScore, got NoneType"),
    ],
)
async def test_what_is_no_node_is_refused_by_index(
    run: Run, door: Door, recorder: Any, given: Any, message: str
) -> None:
    with pytest.raises(InputTypeError, match=message):
        await run(door(), given, query_str="apple")
    assert "ReRankStartEvent" not in recorder.events.names()


async def test_nodes_without_text_rank_last(run: Run, door: Door) -> None:
    given = [
        NodeWithScore(node=ImageNode(image_url="x.png")),
        NodeWithScore(node=Node(image_resource=MediaResource(url="http://localhost/x.png"))),
        NodeWithScore(node=TextNode(text=" \n ")),
        NodeWithScore(node=TextNode(text="a pear")),
    ]
    worst = FakeScorer(lambda q, d: -700.0, activation="logit")
    ranked = await run(door(worst), given, query_str="apple")
    assert [each.node_id for each in ranked] == [given[i].node_id for i in (3, 0, 1, 2)]
    assert [each.score for each in ranked] == [-700.0, *[BLANK_LOGIT] * 3]


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (MetadataMode.NONE, "a pie"),
        (MetadataMode.EMBED, "seen: 1 both: 3 a pie"),
        (MetadataMode.LLM, "hidden: 2 both: 3 a pie"),
        (MetadataMode.ALL, "seen: 1 hidden: 2 both: 3 a pie"),
    ],
)
async def test_metadata_mode_says_what_is_scored(
    run: Run, door: Door, scorer: Any, mode: MetadataMode, text: str
) -> None:
    node = TextNode(
        text="a pie",
        metadata={"seen": 1, "hidden": 2, "both": 3, "relevance_score": 9},
        excluded_embed_metadata_keys=["hidden"],
        excluded_llm_metadata_keys=["seen"],
    )
    await run(door(scorer, metadata_mode=mode), [NodeWithScore(node=node)], query_str="pie")
    assert [d.split() for _, d in scorer.pairs_scored] == [text.split()]


async def test_the_metadata_that_is_embedded_is_scored_by_default(
    run: Run, door: Door, scorer: Any, nodes: Any
) -> None:
    await run(door(scorer), nodes[:1], query_str="pie")
    ((_, scored),) = scorer.pairs_scored
    assert scored.split() == nodes[0].get_content(MetadataMode.EMBED).split()


async def test_the_same_node_twice_comes_back_twice(
    run: Run, door: Door, nodes: Any, query: str
) -> None:
    twin = NodeWithScore(node=TextNode(id_="n2", text="a green pear"), score=0.1)
    ranked = await run(door(top_n=None), [nodes[2], *nodes, twin], query_str=query)
    assert _ids(ranked) == ["n2", "n2", "n3", "n1", "n0", "n2"]
    assert ranked[0].node is not ranked[1].node
    assert ranked[0].score > ranked[-1].score


async def test_a_threshold_after_us_reads_our_scores(
    run: Run, door: Door, nodes: Any, query: str
) -> None:
    ranked = await run(door(), nodes, query_str=query)
    kept = SimilarityPostprocessor(similarity_cutoff=0.8).postprocess_nodes(ranked)
    assert _ids(kept) == ["n2", "n3"]


async def test_a_scorer_that_gives_nan_is_an_error_not_a_rank(
    run: Run, door: Door, nodes: Any
) -> None:
    post = door(FakeScorer(lambda q, d: float("nan") if "pear" in d else 1.0))
    with pytest.raises(ScoringError, match=r"documents\[0\]"):
        await run(post, nodes, query_str="apple")
