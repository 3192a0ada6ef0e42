"""The calls of a chaos run: through both doors and the reranker itself, from threads and loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_plugins import Reranker
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.llama_index import RerankPostprocessor
from tests.chaos_scorer import INSTRUCTION, Pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KINDS = ("rank", "score", "compress", "postprocess")

ENGINES: tuple[dict[str, Any], ...] = (
    {"model": "chaos/one", "queue_tokens": 300},
    {"model": "chaos/two", "queue_tokens": 2000, "replicas": 2, "cache_entries": 100},
    {"model": "chaos/three", "queue_tokens": 80, "cache_entries": 0, "max_wait_s": 0.002},
)
USERS: tuple[dict[str, Any], ...] = (
    {},
    {"priority": "bulk", "when_full": "wait"},
    {"timeout_s": 0.5},
)
"""Settings around an engine: rerankers of these share it."""


class Handle:
    """A reranker that may be closed any time, and its doors."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.closing = False
        self.reranker = Reranker(
            normalizer=None, language_detector=None, activation="logit", **settings
        )
        self.compressor = RerankCompressor(reranker=self.reranker, top_n=None)
        self.postprocessor = RerankPostprocessor(reranker=self.reranker, top_n=None)

    def close(self) -> None:
        self.closing = True
        self.reranker.close()


@dataclass(eq=False, slots=True)
class Request:
    """One call, and what became of it."""

    handle: Handle
    kind: str
    query: str
    documents: list[str]
    instruction: str | None
    timeout_s: float | None
    started_s: float
    cancelled: bool = False

    @property
    def told(self) -> dict[str, Any]:
        """The arguments that only the reranker itself takes."""
        return {"instruction": self.instruction, "timeout_s": self.timeout_s}

    def call(self) -> Callable[[], Any]:
        handle, query, documents = self.handle, self.query, self.documents
        if self.kind == "rank":
            return lambda: handle.reranker.rank(query, documents, **self.told)
        if self.kind == "score":
            return lambda: handle.reranker.score([(query, d) for d in documents], **self.told)
        if self.kind == "compress":
            return lambda: handle.compressor.compress_documents(self._documents(), query)
        return lambda: handle.postprocessor.postprocess_nodes(self._nodes(), query_str=query)

    def acall(self) -> Awaitable[Any]:
        handle, query, documents = self.handle, self.query, self.documents
        if self.kind == "rank":
            return handle.reranker.arank(query, documents, **self.told)
        if self.kind == "score":
            return handle.reranker.ascore([(query, d) for d in documents], **self.told)
        if self.kind == "compress":
            return handle.compressor.acompress_documents(self._documents(), query)
        return handle.postprocessor.apostprocess_nodes(self._nodes(), query_str=query)

    def _documents(self) -> list[Document]:
        return [Document(text, id=str(i)) for i, text in enumerate(self.documents)]

    def _nodes(self) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=TextNode(text=text, id_=str(i)))
            for i, text in enumerate(self.documents)
        ]

    def pair(self, place: int) -> Pair:
        instruction = self.instruction if self.kind in ("rank", "score") else None
        model = self.handle.settings["model"]
        return Pair(model, instruction or INSTRUCTION, self.query, self.documents[place])

    def logits(self, answer: Any) -> dict[int, float]:
        """Return the logit that each document got, by its place."""
        if self.kind == "rank":
            return {each.index: each.logit for each in answer}
        if self.kind == "score":
            return dict(enumerate(answer))
        if self.kind == "compress":
            return {int(each.id): each.metadata["relevance_score"] for each in answer}
        return {int(each.node_id): each.score for each in answer}
