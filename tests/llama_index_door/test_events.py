"""Spans and events: LlamaIndex's tracing sees each rerank begin and end, whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.callbacks import EventPayload
from llama_index.core.schema import QueryBundle

from rerank_plugins.errors import ScoringError
from rerank_plugins.testing import FakeScorer

Door = Any
METHODS = {"sync": "_postprocess_nodes", "async": "_apostprocess_nodes"}


@pytest.fixture(params=METHODS)
def run(request: pytest.FixtureRequest) -> Any:
    async def call(post: Any, *args: Any, **kwargs: Any) -> Any:
        if request.param == "sync":
            return post.postprocess_nodes(*args, **kwargs)
        return await post.apostprocess_nodes(*args, **kwargs)

    call.method = METHODS[request.param]  # type: ignore[attr-defined]
    return call


async def test_both_event_systems_hear_of_a_rerank(
    run: Any, door: Door, nodes: Any, recorder: Any, query: str
) -> None:
    post = door(FakeScorer(name="judge"), top_n=2)
    post.callback_manager = recorder.manager
    bundle = QueryBundle(query)
    ranked = await run(post, nodes, bundle)

    assert recorder.events.names() == ["ReRankStartEvent", "ReRankEndEvent"]
    start, end = recorder.events._seen
    assert (start.query, start.top_n, start.model_name) == (bundle, 2, "judge")
    assert start.nodes == nodes
    assert end.nodes == ranked

    (_, started, asked), (_, ended, answered) = recorder.legacy.seen
    assert started == ended
    assert asked == {
        EventPayload.NODES: nodes,
        EventPayload.MODEL_NAME: "judge",
        EventPayload.QUERY_STR: query,
        EventPayload.TOP_K: 2,
    }
    assert answered == {EventPayload.NODES: ranked}


async def test_events_of_all_nodes_say_how_many(
    run: Any, door: Door, nodes: Any, recorder: Any
) -> None:
    await run(door(top_n=None), nodes, query_str="apple")
    assert recorder.events.of("ReRankStartEvent")[0].top_n == len(nodes)


async def test_the_start_event_keeps_the_scores_that_came(
    run: Any, door: Door, nodes: Any, recorder: Any
) -> None:
    came = [each.score for each in nodes]
    await run(door(), nodes, query_str="apple")
    assert [each.score for each in recorder.events.of("ReRankStartEvent")[0].nodes] == came


async def test_events_are_balanced_without_nodes_and_without_a_query(
    run: Any, door: Door, nodes: Any, recorder: Any
) -> None:
    post = door()
    post.callback_manager = recorder.manager
    await run(post, [], query_str="apple")
    with pytest.raises(ValueError, match="Missing query bundle"):
        await run(post, nodes)
    _assert_balanced(recorder, 0)


async def test_events_are_balanced_on_an_error(
    run: Any, door: Door, nodes: Any, recorder: Any
) -> None:
    post = door(FakeScorer(poison="pear"))
    post.callback_manager = recorder.manager
    with pytest.raises(ScoringError) as caught:
        await run(post, nodes, query_str="apple")
    _assert_balanced(recorder, 1)
    assert recorder.events.of("ReRankEndEvent")[0].nodes == []
    assert recorder.legacy.seen[1][2] == {EventPayload.EXCEPTION: caught.value}
    (dropped,) = recorder.events.of("SpanDropEvent")
    assert dropped.span_id.startswith(f"RerankPostprocessor.{run.method}-")


async def test_events_are_balanced_where_a_node_cannot_be_read(
    run: Any, door: Door, nodes: Any, recorder: Any
) -> None:
    post = door()
    post.callback_manager = recorder.manager
    nodes[1].node.text_template = "{no_such_name}"
    with pytest.raises(ScoringError, match=r"documents\[1\] could not be read: KeyError"):
        await run(post, nodes, query_str="apple")
    _assert_balanced(recorder, 1)


async def test_events_are_balanced_when_a_call_is_cancelled(
    door: Door, nodes: Any, recorder: Any, gated: Any
) -> None:
    scorer = gated()
    post = door(scorer)
    post.callback_manager = recorder.manager
    task = asyncio.create_task(post.apostprocess_nodes(nodes, query_str="apple"))
    await scorer.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scorer.released.set()
    _assert_balanced(recorder, 1)


async def test_each_way_in_has_its_span(
    run: Any, door: Door, nodes: Any, recorder: Any, query: str
) -> None:
    await run(door(), nodes, query_str=query)
    (span,) = recorder.spans.completed_spans
    assert span.id_.startswith(f"RerankPostprocessor.{run.method}-")
    assert {event.span_id for event in recorder.events._seen} == {span.id_}


def _assert_balanced(recorder: Any, times: int) -> None:
    assert len(recorder.events.of("ReRankStartEvent")) == times
    assert len(recorder.events.of("ReRankEndEvent")) == times
    assert [what for what, *_ in recorder.legacy.seen] == ["start", "end"] * times
    assert not recorder.spans.open_spans
