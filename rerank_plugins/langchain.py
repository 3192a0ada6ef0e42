"""The LangChain door: a compressor, a retriever and a cross-encoder over one shared engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence  # noqa: TC003  pydantic reads them
from contextlib import asynccontextmanager, contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Unpack, cast

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema  # noqa: TC002  pydantic reads it

from rerank_plugins.doors import (
    RELEVANCE_SCORE,
    CallOverrides,
    Door,
    ScoringDoor,
    check_items,
    scored_metadata,
)
from rerank_plugins.errors import MissingExtraError
from rerank_plugins.requests import DeferredTexts

try:
    import langchain_core  # noqa: F401  first by itself: one that is too old is not a missing one
    from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever, RetrieverLike
    from langchain_core.runnables import ensure_config
except ModuleNotFoundError as exc:
    if exc.name != "langchain_core":
        raise
    raise MissingExtraError(
        package="langchain_core", extra="langchain", needed_for="rerank_plugins.langchain"
    ) from exc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
    )

    from rerank_plugins.results import Ranking

__all__ = ["RerankCompressor", "RerankCrossEncoder", "RerankRetriever"]


class _DocumentDoor(Door):
    """Reranks documents, as a traced run named "Rerank"."""

    top_n: int | None = Field(
        default=3, ge=1, strict=True, description="documents kept; None keeps all"
    )
    text_fn: SkipJsonSchema[Callable[[Document], str]] | None = Field(
        default=None, repr=False, description="the text that is scored; None is the page_content"
    )

    def _rerank(
        self,
        given: Iterable[Document],
        query: str,
        callbacks: Callbacks,
        top_n: int | None,
        **overrides: Unpack[CallOverrides],
    ) -> list[Document]:
        documents = check_items(given, Document, "documents")
        # A filter may leave nothing; no model is loaded to rank that.
        if not documents:
            return []
        with _traced(query, callbacks) as run:
            ranking = self._rank(query, self._texts(documents), top_n, **overrides)
            ranked = _ranked(documents, ranking)
        run.on_retriever_end(ranked)
        return ranked

    async def _arerank(
        self,
        given: Iterable[Document],
        query: str,
        callbacks: Callbacks,
        top_n: int | None,
        **overrides: Unpack[CallOverrides],
    ) -> list[Document]:
        documents = check_items(given, Document, "documents")
        if not documents:
            return []
        async with _atraced(query, callbacks) as run:
            ranking = await self._arank(query, self._texts(documents), top_n, **overrides)
            ranked = _ranked(documents, ranking)
        await run.on_retriever_end(ranked)
        return ranked

    def _texts(self, documents: Sequence[Document]) -> Sequence[str]:
        return DeferredTexts(documents, self.text_fn or attrgetter("page_content"))


class RerankCompressor(_DocumentDoor, BaseDocumentCompressor):
    """Keeps the documents that answer a query best, best first.

    Takes ``model`` and the other settings of `RerankConfig` by name, or ``reranker``, one that
    stands. ``top_n`` documents are kept at most (None keeps all); ``score_threshold`` drops those
    that score lower, but leaves ``min_results``. What is scored of a document is its
    ``page_content``, or what ``text_fn`` returns for it.

    Documents come back as copies, with their ids, types and metadata, to which are added
    ``relevance_score`` (higher is better) and ``reranked_by``; a ``relevance_score`` that was there
    becomes ``retrieval_score``, unless that was there too. The documents given are not changed;
    what is nested in their metadata is shared with the copies.
    """

    model_config = ConfigDict(extra="forbid")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the best documents, best first.

        Raises:
            InputError: a query or a document that cannot be ranked.
            RerankError: otherwise as `Reranker.rank`.
        """
        return self._rerank(documents, query, callbacks, self.top_n)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Do what `compress_documents` does without blocking the event loop."""
        return await self._arerank(documents, query, callbacks, self.top_n)


class RerankRetriever(_DocumentDoor, BaseRetriever):
    """Retrieves with ``base_retriever`` and keeps what answers the query best, best first.

    The fields and the documents are those of `RerankCompressor`. A call may bring its own
    ``top_n``, ``instruction``, ``duplicates``, ``near_duplicates``, ``max_candidates``,
    ``priority`` and ``timeout_s`` (of the reranking alone):
    ``retriever.invoke(query, top_n=5)``; other keyword arguments, such as ``k`` or ``filter``, go
    to the base retriever.
    """

    # Said by each class: of several bases the last one's word counts, and LangChain's is "ignore".
    model_config = ConfigDict(extra="forbid")

    base_retriever: SkipJsonSchema[RetrieverLike]

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        **kwargs: Any,  # noqa: ANN401  the base retriever's
    ) -> list[Document]:
        top_n = kwargs.pop("top_n", self.top_n)
        overrides = _overrides(kwargs)
        documents = self.base_retriever.invoke(
            query, {"callbacks": run_manager.get_child()}, **kwargs
        )
        return self._rerank(documents, query, run_manager.get_child(), top_n, **overrides)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        **kwargs: Any,  # noqa: ANN401  the base retriever's
    ) -> list[Document]:
        top_n = kwargs.pop("top_n", self.top_n)
        overrides = _overrides(kwargs)
        documents = await self.base_retriever.ainvoke(
            query, {"callbacks": run_manager.get_child()}, **kwargs
        )
        return await self._arerank(documents, query, run_manager.get_child(), top_n, **overrides)


class RerankCrossEncoder(ScoringDoor, BaseCrossEncoder):
    """Scores pairs for code that wants LangChain's cross-encoder interface.

    Takes ``model`` and the other settings of `RerankConfig` by name, or ``reranker``, one that
    stands. `RerankCompressor` does more: it keeps the scores, is traced, and is natively async.
    """

    model_config = ConfigDict(extra="forbid")

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return the score of each (query, document) pair, in input order; higher is better.

        Raises:
            InputError: a pair that cannot be scored, by index.
            RerankError: otherwise as `Reranker.score`.
        """
        return self._open().score(text_pairs)


def _overrides(options: dict[str, Any]) -> CallOverrides:
    """Take what is the reranker's out of the *options* of a call."""
    taken = {name: options.pop(name) for name in CallOverrides.__annotations__ if name in options}
    return cast("CallOverrides", taken)


def _ranked(documents: Sequence[Document], ranking: Ranking) -> list[Document]:
    return [_scored(documents[item.index], item.score, ranking.scorer) for item in ranking]


def _scored(document: Document, score: float, scorer: str) -> Document:
    """Copy a document with the score beside what it came with."""
    metadata = scored_metadata(
        document.metadata,
        came_with=document.metadata.get(RELEVANCE_SCORE),
        score=score,
        scorer=scorer,
    )
    return document.model_copy(update={"metadata": metadata})


@contextmanager
def _traced(query: str, callbacks: Callbacks) -> Iterator[CallbackManagerForRetrieverRun]:
    """Start a run "Rerank", and end it on error; the block's success is reported by its owner."""
    manager = CallbackManager.configure(_inherited(callbacks))
    # A retriever's run: tracers know no reranker's, and show these with their documents.
    run = manager.on_retriever_start(None, query, name=_RUN_NAME)
    try:
        yield run
    except BaseException as exc:
        run.on_retriever_error(exc)
        raise


@asynccontextmanager
async def _atraced(
    query: str, callbacks: Callbacks
) -> AsyncIterator[AsyncCallbackManagerForRetrieverRun]:
    manager = AsyncCallbackManager.configure(_inherited(callbacks))
    run = await manager.on_retriever_start(None, query, name=_RUN_NAME)
    try:
        yield run
    # Cancellation too: a run that never ends is shown as running for ever.
    except BaseException as exc:
        await run.on_retriever_error(exc)
        raise


_RUN_NAME = "Rerank"


def _inherited(callbacks: Callbacks) -> Callbacks:
    """Return the callbacks that were handed over, else those of the runnable we are called in."""
    return ensure_config().get("callbacks") if callbacks is None else callbacks
