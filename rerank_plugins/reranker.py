"""The reranker that users hold: clean → route → engine → finish."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self, TypeGuard, TypeVar, Unpack

from rerank_plugins.cache import CachedPair, Job
from rerank_plugins.cleaning import Cleaner, check_documents, check_query, check_text
from rerank_plugins.config import EMBEDDED, LEXICAL, Activation, Backend, RerankConfig
from rerank_plugins.engine import Engine, deadline_after
from rerank_plugins.errors import (
    ClosedError,
    ConfigError,
    InputError,
    InputTypeError,
    RerankTimeoutError,
)
from rerank_plugins.ranking import BLANK_LOGIT, activate, select
from rerank_plugins.registry import ENGINES
from rerank_plugins.results import RankedDocument, Ranking
from rerank_plugins.scorers import open_scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

    from rerank_plugins.config import RerankSettings
    from rerank_plugins.protocols import AnyScorer
    from rerank_plugins.results import EngineStats

_ENGINE_SETTINGS = (
    "device",
    "precision",
    "max_length",
    "truncation",
    "cache_entries",
    "batch_tokens",
    "queue_tokens",
    "revision",
    "local_files_only",
)
"""The settings that make two engines different, besides the model; the rest act around them."""


@dataclass(slots=True)
class _Group:
    """One query with its documents, and, once they are submitted, who answers."""

    query: str
    where: str
    places: list[int]
    documents: list[str]
    scorer: str = ""
    activation: str = ""
    language: str | None = None


_Leases = dict[str, tuple["Hashable", Engine]]
_R = TypeVar("_R", bound="Reranker")

_BLANK = CachedPair(BLANK_LOGIT, truncated=False)


class _Call(NamedTuple):
    """What a caller asked for, checked, and the wait for it."""

    groups: list[_Group]
    job: Job


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
        self, model: str | AnyScorer = EMBEDDED, **settings: Unpack[RerankSettings]
    ) -> None:
        own = None if isinstance(model, str) else model
        if own is not None and not (hasattr(own, "encode") and hasattr(own, "forward")):
            raise ConfigError(f"model: must be a name, a folder or a Scorer, got {own!r}")
        name = own.name if own is not None else str(model)
        self._setup(RerankConfig(model=name, **settings), own)

    @classmethod
    def from_config(cls, config: RerankConfig) -> Self:
        """Make a reranker of settings that stand already."""
        return _rebuild(cls, config, None)

    def _setup(self, config: RerankConfig, own: AnyScorer | None) -> None:
        self.config = config
        self._own = own
        self._cleaner = Cleaner.from_config(config)
        self._leasing = threading.Lock()
        self._leases: _Leases = {}
        self._finalizer = weakref.finalize(self, _release, self._leases)
        self._primary = self._lease(LEXICAL if config.backend is Backend.LEXICAL else config.model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.model!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # Settings only: a copy, or another process, opens or shares an engine of its own.
        return _rebuild, (type(self), self.config, self._own)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        min_results: int = 0,
        timeout_s: float | None = None,
    ) -> Ranking:
        """Score every document against the query and return them best first.

        Equal scores keep the input order; blank documents come last. *top_n* keeps that many at
        most (None keeps all); *score_threshold* drops lower scores, but leaves *min_results*.
        *timeout_s* overrides the setting of that name.

        Raises:
            InputError: an argument that cannot be ranked, by name and index.
            ModelLoadError, MissingExtraError: the model cannot be opened.
            ScoringError, QueueFullError, RerankTimeoutError, ClosedError: see `errors`.
        """
        keep = _Keep.checked(top_n, score_threshold, min_results)
        call = _rank_call(query, documents)
        self._wait(call, timeout_s)
        return self._ranking(call, documents, keep)

    async def arank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        min_results: int = 0,
        timeout_s: float | None = None,
    ) -> Ranking:
        """Do what `rank` does without blocking the event loop.

        A cancelled call drops those of its pairs that nobody else waits for.
        """
        keep = _Keep.checked(top_n, score_threshold, min_results)
        call = _rank_call(query, documents)
        await self._await(call, timeout_s)
        return self._ranking(call, documents, keep)

    def score(
        self, pairs: Sequence[tuple[str, str]], *, timeout_s: float | None = None
    ) -> list[float]:
        """Return the score of each (query, document) pair, in input order.

        Where queries are in several languages, each is answered by the scorer of its language.

        Raises:
            InputError: a pair that cannot be scored, by index; otherwise as `rank`.
        """
        call = _score_call(pairs)
        self._wait(call, timeout_s)
        return self._scores(call)

    async def ascore(
        self, pairs: Sequence[tuple[str, str]], *, timeout_s: float | None = None
    ) -> list[float]:
        """Do what `score` does without blocking the event loop."""
        call = _score_call(pairs)
        await self._await(call, timeout_s)
        return self._scores(call)

    def warmup(self) -> None:
        """Open the model and score one pair, so that the first caller need not wait for either."""
        self._primary.scorer()
        self.rank("warm up", ["warm up"])

    def stats(self) -> dict[str, EngineStats]:
        """Return the counters of each engine behind this reranker, by model name."""
        with self._leasing:
            engines = {name: engine for name, (_, engine) in self._leases.items()}
        return {name: engine.stats() for name, engine in engines.items()}

    def clear_cache(self) -> None:
        """Forget every cached logit of the engines behind this reranker."""
        with self._leasing:
            engines = [engine for _, engine in self._leases.values()]
        for engine in engines:
            engine.clear_cache()

    def close(self) -> None:
        """Leave the shared engines; the last user's leaving frees the model.

        Calls that are under way on an engine that goes get `ClosedError`. Closing twice is one
        closing.
        """
        if self._finalizer.detach() is not None:
            with self._leasing:
                _release(self._leases, wait=True)

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

    def _wait(self, call: _Call, timeout_s: float | None) -> None:
        timeout_s = self._timeout(timeout_s)
        deadline = deadline_after(timeout_s)
        try:
            self._submit(call, deadline)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            call.job.future.result(left)
        except TimeoutError:
            raise RerankTimeoutError(f"no answer within timeout_s={timeout_s}") from None
        finally:
            call.job.cancel()

    async def _await(self, call: _Call, timeout_s: float | None) -> None:
        self._check_open()
        timeout_s = self._timeout(timeout_s)
        deadline = deadline_after(timeout_s)
        loop = asyncio.get_running_loop()
        submit = partial(contextvars.copy_context().run, self._submit, call, deadline)
        try:
            async with asyncio.timeout(timeout_s):
                # Cleaning and encoding would hold the loop; both let go of it in a thread.
                await loop.run_in_executor(self._primary.threads, submit)
                await asyncio.wrap_future(call.job.future)
        except TimeoutError:
            raise RerankTimeoutError(f"no answer within timeout_s={timeout_s}") from None
        finally:
            call.job.cancel()

    def _submit(self, call: _Call, deadline: float | None) -> None:
        """Clean and route each query with its documents, and hand them to the engine."""
        salt = self._cleaner.identity
        for group in call.groups:
            query, scored_language = self._cleaner.query(group.query, group.where)
            engine = self._route(scored_language)
            scorer = engine.scorer()
            group.scorer, group.language = scorer.name, query.language
            group.activation = (
                scorer.activation
                if self.config.activation is Activation.AUTO
                else self.config.activation.value
            )
            texts: list[str] = []
            places: list[int] = []
            for place, document in zip(group.places, group.documents, strict=True):
                text = self._cleaner.document(document, f"{call.job.argument}[{place}]")
                if text.strip():
                    texts.append(text)
                    places.append(place)
                elif call.job.deliver(place, _BLANK):
                    call.job.succeed()
            engine.submit(call.job, query.text, texts, places, salt=salt, deadline=deadline)

    def _route(self, language: str | None) -> Engine:
        """Return the engine that answers queries in *language*, None where that is unknown."""
        self._check_open()
        primary = self._primary
        if language is None:
            return primary
        routed = self.config.language_models.get(language)
        if routed is not None:
            return self._lease(routed)
        known = primary.scorer().languages
        return primary if known is None or language in known else self._lease(LEXICAL)

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ClosedError(f"{self!r} is closed; make a new one")

    def _lease(self, model: str) -> Engine:
        with self._leasing:
            self._check_open()
            if model not in self._leases:
                key, make = _engine_of(self.config, model, self._own)
                self._leases[model] = key, ENGINES.lease(key, make)
            return self._leases[model][1]

    def _timeout(self, timeout_s: float | None) -> float | None:
        chosen = self.config.timeout_s if timeout_s is None else timeout_s
        if chosen is not None and not chosen > 0:
            raise InputError(f"timeout_s must be above 0 seconds, got {timeout_s!r}")
        return chosen

    def _ranking(self, call: _Call, documents: Sequence[str], keep: _Keep) -> Ranking:
        (group,) = call.groups
        pairs = _delivered(call.job)
        logits = [pair.logit for pair in pairs]
        scores = activate(logits, group.activation)
        kept = select(logits, scores, **keep._asdict())
        return Ranking(
            query=group.query,
            documents=tuple(
                RankedDocument(
                    index=i,
                    score=float(scores[i]),
                    logit=logits[i],
                    text=documents[i],
                    truncated=pairs[i].truncated,
                    cached=call.job.cached[i],
                )
                for i in kept
            ),
            scorer=group.scorer,
            activation=group.activation,
            language=group.language,
        )

    def _scores(self, call: _Call) -> list[float]:
        pairs = _delivered(call.job)
        scores = [0.0] * len(pairs)
        for group in call.groups:
            activated = activate([pairs[place].logit for place in group.places], group.activation)
            for place, score in zip(group.places, activated, strict=True):
                scores[place] = float(score)
        return scores


class _Keep(NamedTuple):
    """Which documents of a ranking are kept."""

    top_n: int | None
    score_threshold: float | None
    min_results: int

    @classmethod
    def checked(cls, top_n: object, score_threshold: object, min_results: object) -> _Keep:
        if top_n is not None and (not _is_int(top_n) or top_n < 1):
            raise InputError(f"top_n must be an int of at least 1, or None for all, got {top_n!r}")
        if score_threshold is not None and not (
            isinstance(score_threshold, int | float)
            and not isinstance(score_threshold, bool)
            and math.isfinite(score_threshold)
        ):
            raise InputError(
                f"score_threshold must be a finite number or None, got {score_threshold!r}"
            )
        if not _is_int(min_results) or min_results < 0:
            raise InputError(f"min_results must be an int of at least 0, got {min_results!r}")
        return cls(top_n, score_threshold, min_results)


def _is_int(value: object) -> TypeGuard[int]:
    # True is an int to Python, and a slip here.
    return isinstance(value, int) and not isinstance(value, bool)


def _rank_call(query: str, documents: Sequence[str]) -> _Call:
    checked = check_documents(documents)
    group = _Group(check_query(query), "query", list(range(len(checked))), checked)
    return _Call([group], Job(len(checked)))


def _score_call(pairs: Sequence[tuple[str, str]]) -> _Call:
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Sequence):
        raise InputTypeError(
            f"pairs must be a sequence of (query, document), got {type(pairs).__name__}"
        )
    groups: dict[str, _Group] = {}
    for i, pair in enumerate(pairs):
        if isinstance(pair, str | bytes) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputTypeError(f"pairs[{i}] must be (query, document), got {pair!r:.80}")
        query = check_query(pair[0], f"pairs[{i}][0]")
        group = groups.setdefault(query, _Group(query, f"pairs[{i}][0]", [], []))
        group.places.append(i)
        group.documents.append(check_text(pair[1], f"pairs[{i}][1]"))
    return _Call(list(groups.values()), Job(len(pairs), argument="pairs"))


def _delivered(job: Job) -> list[CachedPair]:
    return [pair for pair in job.pairs if pair is not None]


def _engine_of(
    config: RerankConfig, model: str, own: AnyScorer | None
) -> tuple[Hashable, Callable[[], Engine]]:
    """Return the registry key of the engine that serves *model*, and how to make it."""
    open_it: Callable[[], AnyScorer]
    key: Hashable
    if own is not None and model == config.model:
        key, open_it = ("own scorer", id(own)), partial(_same, own)
    else:
        if model != config.model:
            # These two speak of the model that was configured, not of one it routes to.
            config = config.model_copy(
                update={"model": model, "backend": Backend.AUTO, "revision": None}
            )
        key = (model, *(getattr(config, name) for name in _ENGINE_SETTINGS))
        open_it = partial(open_scorer, config)
    make = partial(
        Engine,
        model,
        open_it,
        cache_entries=config.cache_entries,
        batch_tokens=config.batch_tokens,
        queue_tokens=config.queue_tokens,
    )
    return key, make


def _same(own: AnyScorer) -> AnyScorer:
    return own


def _release(leases: _Leases, *, wait: bool = False) -> None:
    while leases:
        _, (key, _) = leases.popitem()
        ENGINES.release(key, wait=wait)


def _rebuild(cls: type[_R], config: RerankConfig, own: AnyScorer | None) -> _R:
    made = cls.__new__(cls)
    made._setup(config, own)
    return made
