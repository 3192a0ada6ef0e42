"""A chunk of queries → its rows: the one way, on this machine and on each Ray worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from rerank_plugins.batch.options import for_batch
from rerank_plugins.batch.queries import BadQuery
from rerank_plugins.batch.rows import RankedChunk, ranked_chunk
from rerank_plugins.errors import InputError, ScoringError
from rerank_plugins.reranker import Reranker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rerank_plugins.batch.options import BatchOptions
    from rerank_plugins.batch.queries import BatchQuery, Item
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.results import Ranking


class ChunkRanker:
    """Ranks chunks with a reranker of its own; chunks may be ranked at the same time.

    Raises:
        ModelLoadError, MissingExtraError, ConfigError: the model cannot be opened.
    """

    def __init__(self, config: RerankConfig, options: BatchOptions) -> None:
        self._options = options
        self._reranker = Reranker.from_config(for_batch(config))
        try:
            self._reranker.warmup()
            self.identity = self._reranker.identity
        except BaseException:
            self._reranker.close()
            raise

    async def rank(self, first: int, items: Sequence[Item]) -> RankedChunk:
        """Rank consecutive queries, all at once; *first* is the number of the first.

        Raises:
            InputError, ScoringError: of a query, with its place, unless bad ones are skipped. Where
                the model fails on every query of the chunk, it is no query that is bad.
        """
        tasks = [asyncio.ensure_future(self._answer(item)) for item in items]
        try:
            answered = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        failed = [answer for answer in answered if isinstance(answer, ScoringError)]
        if failed and not any(isinstance(answer, tuple) for answer in answered):
            raise failed[0]
        answers = [BadQuery(str(a)) if isinstance(a, Exception) else a for a in answered]
        # Rows of a large chunk take a while, and the other chunk's answers come meanwhile.
        return await asyncio.to_thread(ranked_chunk, first, answers, texts=self._options.texts)

    async def _answer(self, item: Item) -> tuple[BatchQuery, Ranking] | InputError | ScoringError:
        """Rank one query, or return what says that it is bad, where bad ones are skipped."""
        options = self._options
        try:
            if isinstance(item, BadQuery):
                raise InputError(item.reason)
            ranking = await self._reranker.arank(
                item.text,
                item.documents,
                top_n=options.top_n,
                score_threshold=options.score_threshold,
                min_results=options.min_results,
            )
        except (InputError, ScoringError) as exc:
            placed = _placed(exc, item)
            # What may work a moment later is no property of the query.
            if options.on_bad == "stop" or (isinstance(exc, ScoringError) and exc.retryable):
                raise placed from exc
            return placed
        return item, ranking

    def close(self) -> None:
        """Let go of the model."""
        self._reranker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _placed(error: InputError | ScoringError, item: Item) -> InputError | ScoringError:
    """Return the error with the place of its query before it."""
    if isinstance(item, BadQuery):
        return error
    reason = f"{item.where}: {error}"
    if isinstance(error, InputError):
        return InputError(reason)
    return type(error)(reason, retryable=error.retryable)
