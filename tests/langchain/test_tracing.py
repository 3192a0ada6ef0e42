"""Reranking shows in a trace: one run, in its place, and always ended."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer

from rerank_plugins import ScoringError
from rerank_plugins.langchain import RerankCompressor, RerankRetriever
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from langchain_core.tracers.schemas import Run

    from rerank_plugins import Reranker

    Faked = Callable[..., Reranker]
    Compress = Callable[..., Awaitable[Sequence[Document]]]
    Invoke = Callable[..., Awaitable[list[Document]]]

DOCUMENTS = [Document("a Fox"), Document("the red fox")]


class Recorder(BaseTracer):
    """Keeps the runs that ended, whole trees as their roots."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)

    @property
    def open_runs(self) -> int:
        return len(self.run_map)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def tree(run: Run) -> list[Any]:
    return [run.name, *map(tree, run.child_runs)]


def base_retriever() -> RunnableLambda[str, list[Document]]:
    return RunnableLambda(lambda _: DOCUMENTS, name="Base")


async def test_a_compressor_is_a_run_with_its_query_and_documents(
    faked: Faked, compress: Compress, recorder: Recorder
) -> None:
    kept = await compress(
        RerankCompressor(reranker=faked(), top_n=1), DOCUMENTS, "red fox", callbacks=[recorder]
    )

    (run,) = recorder.roots
    assert (run.name, run.run_type, run.error) == ("Rerank", "retriever", None)
    assert run.inputs == {"query": "red fox"}
    assert run.outputs == {"documents": kept}
    assert recorder.open_runs == 0


async def test_a_compression_retriever_has_the_rerank_run_as_its_child(
    faked: Faked, invoke: Invoke, recorder: Recorder
) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=RerankCompressor(reranker=faked()), base_retriever=base_retriever()
    )

    await invoke(retriever, "red fox", {"callbacks": [recorder]})

    (root,) = recorder.roots
    assert tree(root) == ["ContextualCompressionRetriever", ["Base"], ["Rerank"]]
    assert root.child_runs[1].parent_run_id == root.id


async def test_a_rerank_retriever_has_base_and_rerank_runs_as_its_children(
    faked: Faked, invoke: Invoke, recorder: Recorder
) -> None:
    retriever = RerankRetriever(base_retriever=base_retriever(), reranker=faked())

    found = await invoke(
        retriever, "red fox", {"callbacks": [recorder], "run_name": "Search", "tags": ["t"]}
    )

    (root,) = recorder.roots
    assert tree(root) == ["Search", ["Base"], ["Rerank"]]
    assert root.child_runs[1].outputs == {"documents": found}
    assert root.child_runs[1].tags == ["t"]


async def test_a_compressor_called_in_a_runnable_is_its_child(
    faked: Faked, invoke: Invoke, recorder: Recorder
) -> None:
    compressor = RerankCompressor(reranker=faked())

    async def arerank(query: str) -> Sequence[Document]:
        return await compressor.acompress_documents(DOCUMENTS, query)

    chain = RunnableLambda(
        lambda query: compressor.compress_documents(DOCUMENTS, query), arerank, name="Chain"
    )
    await invoke(chain, "red fox", {"callbacks": [recorder]})

    (root,) = recorder.roots
    assert tree(root) == ["Chain", ["Rerank"]]


@pytest.mark.parametrize("where", ["scorer", "text_fn", "query"])
async def test_an_error_ends_the_run(
    faked: Faked, compress: Compress, recorder: Recorder, where: str
) -> None:
    poison = "Fox" if where == "scorer" else None
    compressor = RerankCompressor(
        reranker=faked(FakeScorer(poison=poison)),
        text_fn=(lambda d: d.metadata["title"]) if where == "text_fn" else None,
    )
    query = "" if where == "query" else "red fox"

    with pytest.raises((ScoringError, KeyError, ValueError)) as caught:
        await compress(compressor, DOCUMENTS, query, callbacks=[recorder])

    (run,) = recorder.roots
    assert run.name == "Rerank"
    assert run.end_time is not None
    assert run.error is not None
    assert type(caught.value).__name__ in run.error
    assert recorder.open_runs == 0


async def test_an_error_ends_the_runs_around_it(
    faked: Faked, invoke: Invoke, recorder: Recorder
) -> None:
    reranker = faked(FakeScorer(poison="Fox"))
    retriever = RerankRetriever(base_retriever=base_retriever(), reranker=reranker)

    with pytest.raises(ScoringError, match=r"documents\[0\]"):
        await invoke(retriever, "red fox", {"callbacks": [recorder]})

    (root,) = recorder.roots
    assert [bool(run.error) for run in (root, *root.child_runs)] == [True, False, True]
    assert recorder.open_runs == 0


async def test_a_cancelled_call_ends_its_run(faked: Faked, recorder: Recorder) -> None:
    entered, release = threading.Event(), threading.Event()

    def wait(_: str, __: str) -> float:
        entered.set()
        release.wait(30)
        return 0.0

    compressor = RerankCompressor(reranker=faked(FakeScorer(wait)))
    task = asyncio.create_task(
        compressor.acompress_documents(DOCUMENTS, "red fox", callbacks=[recorder])
    )
    await asyncio.to_thread(entered.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()

    (run,) = recorder.roots
    assert run.end_time is not None
    assert "CancelledError" in (run.error or "")
    assert recorder.open_runs == 0


async def test_no_documents_are_no_run(
    faked: Faked, compress: Compress, recorder: Recorder
) -> None:
    await compress(RerankCompressor(reranker=faked()), [], "red fox", callbacks=[recorder])

    assert recorder.roots == []
    assert recorder.open_runs == 0
