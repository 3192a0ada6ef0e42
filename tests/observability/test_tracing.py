"""Spans of calls: where they hang, how long they are, what they say."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from rerank_plugins import InputError, RequestEvent, Reranker, ScoringError, StageSeconds
from rerank_plugins.testing import FakeScorer
from rerank_plugins.tracing import TracingObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.observability.conftest import Gated


class Traced:
    """A tracer of the caller's, an observer on the same provider, and what was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("caller")
        self.observer = TracingObserver(self.provider)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def parent_of(self, span: ReadableSpan) -> str:
        by_id = {each.context.span_id: each.name for each in self.exporter.get_finished_spans()}
        return "" if span.parent is None else by_id[span.parent.span_id]


@pytest.fixture
def traced() -> Traced:
    return Traced()


def test_a_call_is_a_span_below_its_callers(
    traced: Traced, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(observers=[traced.observer])

    with traced.tracer.start_as_current_span("in a request"):
        reranker.rank("red fox", ["a fox", "a red dog"])
    reranker.rank("red fox", ["a fox"])

    below, alone = traced.named("rerank")
    assert traced.parent_of(below) == "in a request"
    assert traced.parent_of(alone) == ""
    assert below.attributes == {
        "rerank_plugins.model": "fake",
        "rerank_plugins.scorer": "fake",
        "rerank_plugins.outcome": "ok",
        "rerank_plugins.pairs": 2,
        "rerank_plugins.cached_pairs": 0,
        "rerank_plugins.tokens": 5,
    }
    assert below.status.status_code is StatusCode.UNSET
    outer = traced.named("in a request")[0]
    assert outer.start_time is not None
    assert below.start_time is not None
    assert below.start_time >= outer.start_time - 1_000_000


async def test_calls_of_tasks_hang_below_their_own_spans(
    traced: Traced, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(observers=[traced.observer])

    async def one(name: str) -> None:
        with traced.tracer.start_as_current_span(name):
            await reranker.arank("red fox", [f"document {name}"])

    await asyncio.gather(*(one(name) for name in "abc"))

    assert sorted(map(traced.parent_of, traced.named("rerank"))) == ["a", "b", "c"]


def test_calls_of_threads_hang_below_their_own_spans(
    traced: Traced, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(observers=[traced.observer])
    together = threading.Barrier(3)

    def one(name: str) -> None:
        with traced.tracer.start_as_current_span(name):
            together.wait(30)
            reranker.rank("red fox", [f"document {name}"])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, "abc"))

    assert sorted(map(traced.parent_of, traced.named("rerank"))) == ["a", "b", "c"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_calls_through_langchain_hang_below_the_callers_span(
    asynchronous: bool, traced: Traced, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    documents = pytest.importorskip("langchain_core.documents")
    from rerank_plugins.langchain import RerankCompressor

    reranker, _ = open_reranker(observers=[traced.observer])
    door = RerankCompressor(reranker=reranker)
    given = [documents.Document("a fox")]

    with traced.tracer.start_as_current_span("caller"):
        if asynchronous:
            asyncio.run(door.acompress_documents(given, "red fox"))
        else:
            door.compress_documents(given, "red fox")

    assert [traced.parent_of(span) for span in traced.named("rerank")] == ["caller"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_calls_through_llama_index_hang_below_the_callers_span(
    asynchronous: bool, traced: Traced, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    schema = pytest.importorskip("llama_index.core.schema")
    from rerank_plugins.llama_index import RerankPostprocessor

    reranker, _ = open_reranker(observers=[traced.observer])
    door = RerankPostprocessor(reranker=reranker)
    nodes = [schema.NodeWithScore(node=schema.TextNode(text="a fox"))]

    with traced.tracer.start_as_current_span("caller"):
        if asynchronous:
            asyncio.run(door.apostprocess_nodes(nodes, query_str="red fox"))
        else:
            door.postprocess_nodes(nodes, query_str="red fox")

    assert [traced.parent_of(span) for span in traced.named("rerank")] == ["caller"]


def event(outcome: str = "ok", error: str = "", **more: Any) -> RequestEvent:
    given: dict[str, Any] = {"pairs": 1, "cached": 0, "tokens": 1, "duration_s": 2.0}
    return RequestEvent("m", "s", outcome, **{**given, "started_s": 1000.0, **more}, error=error)


def test_children_are_the_stages_end_to_end(traced: Traced) -> None:
    stages = StageSeconds(clean=0.25, encode=0.5, queue=0.125, forward=1.0, finish=0.125)

    traced.observer.on_request(event(stages=stages))

    *children, parent = traced.exporter.get_finished_spans()
    assert [span.name for span in children] == [
        "rerank clean",
        "rerank encode",
        "rerank queue",
        "rerank forward",
        "rerank finish",
    ]
    assert {traced.parent_of(span) for span in children} == {"rerank"}
    times = [(span.start_time or 0, span.end_time or 0) for span in (*children, parent)]
    assert [((start - 1000 * 10**9) / 1e9, (end - start) / 1e9) for start, end in times] == [
        (0, 0.25),
        (0.25, 0.5),
        (0.75, 0.125),
        (0.875, 1.0),
        (1.875, 0.125),
        (0, 2.0),
    ]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("ok", StatusCode.UNSET),
        ("fallback", StatusCode.UNSET),
        ("cancelled", StatusCode.UNSET),
        ("error", StatusCode.ERROR),
        ("timeout", StatusCode.ERROR),
        ("queue_full", StatusCode.ERROR),
        ("closed", StatusCode.ERROR),
        ("invalid", StatusCode.ERROR),
    ],
)
def test_the_status_is_an_error_where_the_caller_got_one(
    outcome: str, status: StatusCode, traced: Traced
) -> None:
    traced.observer.on_request(event(outcome, "" if outcome == "ok" else "SomeError"))

    (span,) = traced.named("rerank")
    assert span.status.status_code is status
    assert span.status.description == (outcome if status is StatusCode.ERROR else None)
    assert (span.attributes or {}).get("error.type") == (None if outcome == "ok" else "SomeError")


def test_a_failing_call_has_a_span_without_its_texts(
    traced: Traced, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(FakeScorer(poison="poison"), observers=[traced.observer])

    with traced.tracer.start_as_current_span("caller"):
        with pytest.raises(ScoringError):
            reranker.rank("secretquery", ["poison secretdocument"])
        with pytest.raises(InputError):
            reranker.rank(" ", ["secretdocument"])

    failed, invalid = traced.named("rerank")
    assert (failed.attributes or {})["error.type"] == "ScoringError"
    assert (invalid.attributes or {})["rerank_plugins.outcome"] == "invalid"
    assert traced.parent_of(invalid) == "caller"
    written = " ".join(span.to_json() for span in traced.exporter.get_finished_spans())
    assert "secret" not in written
    assert "poison" not in written


async def test_a_cancelled_call_has_a_span_below_its_caller(
    traced: Traced, gated: Gated, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(gated, observers=[traced.observer])

    async def caller() -> None:
        with traced.tracer.start_as_current_span("caller"):
            await reranker.arank("red fox", ["a fox"])

    task = asyncio.create_task(caller())
    assert await asyncio.to_thread(gated.entered.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    (span,) = traced.named("rerank")
    assert traced.parent_of(span) == "caller"
    assert (span.attributes or {})["rerank_plugins.outcome"] == "cancelled"


def test_a_call_that_is_not_sampled_has_no_children() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    TracingObserver(provider).on_request(event(stages=StageSeconds(clean=1.0)))

    assert exporter.get_finished_spans() == ()


def test_without_a_provider_it_is_the_processes_own_and_travels() -> None:
    observer = TracingObserver()
    # Nothing is set up in this process: the spans go nowhere, and nothing is raised.
    observer.on_request(event())

    assert isinstance(pickle.loads(pickle.dumps(observer)), TracingObserver)
    assert copy.deepcopy(observer) is observer
