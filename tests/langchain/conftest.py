"""What the tests of the LangChain door share."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from langchain_core.documents import BaseDocumentCompressor, Document


@pytest.fixture
def faked() -> Iterator[Callable[..., Reranker]]:
    """Open rerankers over fake scorers; all are closed when the test ends."""
    opened: list[Reranker] = []

    def open_it(scorer: FakeScorer | None = None, **settings: Any) -> Reranker:
        opened.append(Reranker(scorer or FakeScorer(), **settings))
        return opened[-1]

    yield open_it
    for reranker in opened:
        reranker.close()


@pytest.fixture
def opened_by_name(monkeypatch: pytest.MonkeyPatch) -> list[FakeScorer]:
    """Let ``model="lexical"`` open a fake; the list holds each one that was opened."""
    opened: list[FakeScorer] = []

    def open_fake(*_: object) -> FakeScorer:
        opened.append(FakeScorer())
        return opened[-1]

    module = ModuleType("rerank_plugins.scorers.lexical")
    module.LexicalScorer = SimpleNamespace(open=open_fake)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return opened


@pytest.fixture(params=["sync", "async"])
def compress(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Sequence[Document]]]:
    """Compress through either of a compressor's two methods: each claim holds for both."""

    async def call(
        compressor: BaseDocumentCompressor,
        documents: Sequence[Document],
        query: str = "red fox",
        **options: Any,
    ) -> Sequence[Document]:
        if request.param == "sync":
            return compressor.compress_documents(documents, query, **options)
        return await compressor.acompress_documents(documents, query, **options)

    return call


@pytest.fixture(params=["sync", "async"])
def invoke(request: pytest.FixtureRequest) -> Callable[..., Awaitable[list[Document]]]:
    """Invoke a runnable through either of its two methods."""

    async def call(runnable: Any, *args: Any, **options: Any) -> list[Document]:
        if request.param == "sync":
            return runnable.invoke(*args, **options)
        return await runnable.ainvoke(*args, **options)

    return call
