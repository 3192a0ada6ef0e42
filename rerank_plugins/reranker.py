"""The reranker that users hold: its methods, and what they share with rerankers of its kind."""

from __future__ import annotations

import asyncio
import os
import weakref
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

from rerank_plugins.cleaning import Cleaner
from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import ConfigError
from rerank_plugins.finishing import ranking_of, scores_of
from rerank_plugins.options import EMBEDDED
from rerank_plugins.protocols import AnyScorer, Scorer
from rerank_plugins.registry import Leases
from rerank_plugins.reporting import reported_if_refused
from rerank_plugins.requests import Keep, choice_of, priority_of, rank_call, score_call
from rerank_plugins.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rerank_plugins.config import RerankSettings
    from rerank_plugins.options import Duplicates, Priority
    from rerank_plugins.results import EngineStats, Ranking

_R = TypeVar("_R", bound="Reranker")


class Reranker:
    """Ranks documents by how well they answer a query.

    *model* is ``"embedded"`` (the English model of this package, the default), ``"lexical"``, a
    Hugging Face id, a local folder or ONNX file, or a `Scorer` of your own, which the reranker
    then owns and closes. The settings are those of `RerankConfig`. Nothing is loaded before the
    first call or `warmup`. Rerankers of equal settings share one engine, with its model, cache
    and queue; all methods may be called from any thread and any event loop.

    Raises:
        ConfigError: a setting is unknown, out of range or at odds with another one.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | AnyScorer = EMBEDDED,
        **settings: Unpack[RerankSettings],
    ) -> None:
        if isinstance(model, str | os.PathLike):
            own, name = None, os.fspath(model)
        elif isinstance(model, Scorer):
            own, name = model, model.name
        else:
            raise ConfigError(f"model: expected a name, a folder or a Scorer, got {model!r}")
        self._setup(RerankConfig(model=name, **settings), own)

    @classmethod
    def from_config(cls, config: RerankConfig) -> Self:
        """Make a reranker of settings that stand already."""
        return _rebuild(cls, config, None)

    def _setup(self, config: RerankConfig, own: AnyScorer | None) -> None:
        self.config = config
        self._own = own
        self._cleaner = Cleaner.from_config(config)
        self._leases = Leases(config, own)
        self._serving = Serving(config, self._cleaner, self._leases)
        self._finalizer = weakref.finalize(self, self._leases.release)
        # At exit the registry closes every engine, and waits for the batches that run.
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.model!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # Settings only: a copy, or another process, opens or shares an engine of its own.
        return _rebuild, (type(self), self.config, self._own)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # A scorer that the user made is shared, never copied: it may hold a model.
        return _rebuild(type(self), self.config, self._own)

    @property
    def scorer_given(self) -> bool:
        """Whether it scores with a `Scorer` that the user made, and not with a named model."""
        return self._own is not None

    @property
    def takes_instruction(self) -> bool:
        """Whether the model can be told what to look for; it is opened to say so.

        Raises:
            ModelLoadError, MissingExtraError, ClosedError: it cannot be opened.
        """
        self._leases.check_open()
        return self._leases.primary.takes_instruction()

    @property
    def identity(self) -> str:
        """Everything that changes a logit of the configured model; it is opened to say so.

        That is the model's own `Scorer.identity`, how texts are cleaned, and the instruction that
        is set. Two rerankers of one identity give the same logits.

        Raises:
            ModelLoadError, MissingExtraError, ClosedError: it cannot be opened.
        """
        self._leases.check_open()
        told = (self._cleaner.identity, self.config.instruction or "")
        return "\n".join((self._leases.primary.scorer().identity, *told))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        min_results: int = 0,
        duplicates: Duplicates | str | None = None,
        near_duplicates: float | None = None,
        max_candidates: int | None = None,
        instruction: str | None = None,
        priority: Priority | str | None = None,
        timeout_s: float | None = None,
    ) -> Ranking:
        """Score every document against the query and return them best first.

        Equal scores keep the input order; blank documents come last. *top_n* keeps that many at
        most (None keeps all); *score_threshold* drops lower scores, but leaves *min_results*.
        *duplicates*, *near_duplicates*, *max_candidates*, *instruction*, *priority* and *timeout_s*
        override the settings of those names; 0 switches the second and the third off, and the last
        one cannot interrupt a plugged-in function. No documents give an empty ranking, though the
        model is opened to say whose.

        Raises:
            InputError: an argument that cannot be ranked, by name and index.
            ConfigError: the setting ``instruction``, for a model that takes none.
            ModelLoadError, MissingExtraError: the model cannot be opened.
            ScoringError, QueueFullError, RerankTimeoutError, ClosedError: see `errors`.
        """
        with reported_if_refused(self.config):
            keep = Keep.checked(top_n, score_threshold, min_results)
            choice = choice_of(self.config, duplicates, near_duplicates, max_candidates)
            call = rank_call(query, documents, choice, instruction)
            call.job.priority = priority_of(self.config, priority)
        return self._serving.answer(call, timeout_s, partial(ranking_of, keep=keep))

    async def arank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        min_results: int = 0,
        duplicates: Duplicates | str | None = None,
        near_duplicates: float | None = None,
        max_candidates: int | None = None,
        instruction: str | None = None,
        priority: Priority | str | None = None,
        timeout_s: float | None = None,
    ) -> Ranking:
        """Do what `rank` does without blocking the event loop.

        A cancelled call drops those of its pairs that nobody else waits for.
        """
        with reported_if_refused(self.config):
            keep = Keep.checked(top_n, score_threshold, min_results)
            choice = choice_of(self.config, duplicates, near_duplicates, max_candidates)
            call = rank_call(query, documents, choice, instruction)
            call.job.priority = priority_of(self.config, priority)
        return await self._serving.await_answer(call, timeout_s, partial(ranking_of, keep=keep))

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        priority: Priority | str | None = None,
        timeout_s: float | None = None,
    ) -> list[float]:
        """Return the score of each (query, document) pair, in input order.

        Where queries are in several languages, each is answered by the scorer of its language.
        *instruction* is one for all; duplicates are scored like any other pair.

        Raises:
            InputError: a pair that cannot be scored, by index; otherwise as `rank`.
        """
        with reported_if_refused(self.config):
            call = score_call(pairs, instruction)
            call.job.priority = priority_of(self.config, priority)
        return self._serving.answer(call, timeout_s, scores_of)

    async def ascore(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        priority: Priority | str | None = None,
        timeout_s: float | None = None,
    ) -> list[float]:
        """Do what `score` does without blocking the event loop."""
        with reported_if_refused(self.config):
            call = score_call(pairs, instruction)
            call.job.priority = priority_of(self.config, priority)
        return await self._serving.await_answer(call, timeout_s, scores_of)

    def warmup(self) -> None:
        """Open the model and score one pair with each replica: the first callers need not wait.

        Where the lexical scorer is in the fallback chain, it is opened too.

        Raises:
            ModelLoadError, MissingExtraError, ScoringError, ClosedError: it cannot.
        """
        self._leases.check_open()
        self._cleaner.warm_up()
        self._serving.warm_up()

    def stats(self) -> dict[str, EngineStats]:
        """Return the counters of each engine behind this reranker, by model name."""
        return {name: engine.stats() for name, engine in self._leases.engines().items()}

    def clear_cache(self) -> None:
        """Forget every cached logit of the engines behind this reranker.

        What a shared cache holds stays: it belongs to others, too.
        """
        for engine in self._leases.engines().values():
            engine.clear_cache()

    def close(self) -> None:
        """Leave the shared engines; the last user's leaving frees the model.

        Calls that are under way on an engine that goes get `ClosedError`. Closing twice is one
        closing.
        """
        if self._finalizer.detach() is not None:
            self._leases.release(wait=True)

    async def aclose(self) -> None:
        """Do what `close` does without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _rebuild(cls: type[_R], config: RerankConfig, own: AnyScorer | None) -> _R:
    made = cls.__new__(cls)
    made._setup(config, own)
    return made
