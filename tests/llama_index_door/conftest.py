"""Nodes, a retriever, a scorer that waits, and recorders of LlamaIndex's two event systems."""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span_handlers import SimpleSpanHandler
from pydantic import PrivateAttr

from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.reranker import Reranker
from rerank_plugins.testing import FakePair, FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

QUERY = "red apple pie"
TEXTS = ("a green pear", "an apple", "red apple pie with cream", "apple pie")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a test called {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def query() -> str:
    """Shares 0, 1, 3 and 2 words with the texts of `nodes`, in that order."""
    return QUERY


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    """Four nodes as a retriever gives them, the best third; ids n0 to n3."""
    return [
        NodeWithScore(
            node=TextNode(id_=f"n{i}", text=text, metadata={"page": i, "tags": ["fruit"]}),
            score=0.9 - i / 10,
        )
        for i, text in enumerate(TEXTS)
    ]


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
def door() -> Iterator[Callable[..., RerankPostprocessor]]:
    """Make a postprocessor over a scorer: ``door(scorer, top_n=…)``."""
    opened: list[Reranker] = []

    def make(scorer: FakeScorer | None = None, **settings: Any) -> RerankPostprocessor:
        # The scorer knows every language; nothing is gained by detecting one.
        opened.append(Reranker(scorer or FakeScorer(), language_detector=None))
        return RerankPostprocessor(reranker=opened[-1], **settings)

    yield make
    for reranker in opened:
        reranker.close()


@pytest.fixture
def opened_by_name(monkeypatch: pytest.MonkeyPatch) -> list[FakeScorer]:
    """Let ``model="lexical"`` open a fake; the list holds each one that was opened."""
    opened: list[FakeScorer] = []

    def open_fake(*settings: object) -> FakeScorer:
        opened.append(FakeScorer())
        return opened[-1]

    module = ModuleType("rerank_plugins.scorers.lexical")
    module.LexicalScorer = SimpleNamespace(open=open_fake)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return opened


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Any:
    """Call the postprocessor the way its name says; both are awaited."""

    async def call(post: RerankPostprocessor, *args: Any, **kwargs: Any) -> list[NodeWithScore]:
        if request.param == "sync":
            return post.postprocess_nodes(*args, **kwargs)
        return await post.apostprocess_nodes(*args, **kwargs)

    return call


class GatedScorer(FakeScorer):
    """Stays inside its first forward pass until ``released`` is set.

    ``entered`` is set on the event loop once it is there, ``encoded`` once it has encoded *queries*
    requests. Made on a running event loop.
    """

    def __init__(self, *, queries: int = 1) -> None:
        super().__init__(self._wait)
        self.entered, self.encoded = asyncio.Event(), asyncio.Event()
        self.released = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._queries = queries
        self._count = itertools.count(1)

    def encode(self, query: str, documents: Sequence[str]) -> list[FakePair]:
        pairs = super().encode(query, documents)
        if next(self._count) == self._queries:
            self._loop.call_soon_threadsafe(self.encoded.set)
        return pairs

    def _wait(self, query: str, document: str) -> float:
        if not self.released.is_set():
            self._loop.call_soon_threadsafe(self.entered.set)
            assert self.released.wait(60), "nobody else came to run"
        return 1.0


@pytest.fixture
def gated() -> type[GatedScorer]:
    return GatedScorer


class FixedRetriever(BaseRetriever):
    """Answers every query with the same nodes."""

    def __init__(self, found: list[NodeWithScore]) -> None:
        self._found = found
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self._found)


@pytest.fixture
def retriever(nodes: list[NodeWithScore]) -> FixedRetriever:
    return FixedRetriever(nodes)


class Legacy(BaseCallbackHandler):
    """Keeps (what, type, payload) of every legacy event of reranking."""

    def __init__(self) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self.seen: list[tuple[str, str, dict[str, Any]]] = []

    def _keep(self, what: str, kind: CBEventType, payload: dict[str, Any] | None, id_: str) -> str:
        if kind is CBEventType.RERANKING:
            self.seen.append((what, id_, dict(payload or {})))
        return id_

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        return self._keep("start", event_type, payload, event_id)

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        self._keep("end", event_type, payload, event_id)

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None: ...


class Events(BaseEventHandler):
    """Keeps every event that our dispatcher sends."""

    _seen: list[Any] = PrivateAttr(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        self._seen.append(event)

    def of(self, name: str) -> list[Any]:
        return [event for event in self._seen if event.class_name() == name]

    def names(self) -> list[str]:
        return [event.class_name() for event in self._seen]


class Recorder:
    """What was announced: dispatcher events and spans, and the legacy events."""

    def __init__(self) -> None:
        self.events = Events()
        self.spans = SimpleSpanHandler()
        self.legacy = Legacy()
        self.manager = CallbackManager([self.legacy])


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    dispatcher = get_dispatcher("rerank_plugins.llama_index")
    before = list(dispatcher.event_handlers), list(dispatcher.span_handlers)
    dispatcher.add_event_handler(made.events)
    dispatcher.add_span_handler(made.spans)
    yield made
    dispatcher.event_handlers, dispatcher.span_handlers = before
