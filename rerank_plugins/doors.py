"""What both framework doors share: the settings as fields, and the reranker behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from operator import is_
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack

from pydantic import Field, PrivateAttr, model_validator
from pydantic.json_schema import SkipJsonSchema

from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import ConfigError, InputTypeError
from rerank_plugins.options import Duplicates, Priority
from rerank_plugins.reranker import Reranker
from rerank_plugins.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rerank_plugins.results import Ranking

T = TypeVar("T")

RELEVANCE_SCORE = "relevance_score"
"""Metadata key of the reranker's score: a Python float, higher is better."""

RETRIEVAL_SCORE = "retrieval_score"
"""Metadata key of the score that a document came with, where it came with one."""

RERANKED_BY = "reranked_by"
"""Metadata key of the scorer that answered."""


_DEFAULTS: dict[str, Any] = dict(RerankConfig())


class CallOverrides(TypedDict, total=False):
    """Settings that one call of `Reranker.rank` may override."""

    duplicates: Duplicates | str | None
    near_duplicates: float | None
    max_candidates: int | None
    instruction: str | None
    priority: Priority | str | None
    timeout_s: float | None


class ScoringDoor(Settings):
    """Settings and reranker of a framework's adapter; the adapter holds no scoring logic.

    Either ``reranker=``, one that stands and stays its owner's, or the settings by their names.
    Doors of equal settings share one engine, whose model is loaded at first use.
    """

    reranker: SkipJsonSchema[Reranker] | None = Field(default=None, exclude=True, repr=False)

    _opened: Reranker | None = PrivateAttr(default=None)

    def _open(self) -> Reranker:
        """Return the reranker behind this door, opening one of its settings if need be.

        Raises:
            ConfigError: both a reranker and settings were given, or assigned since.
        """
        # Lists may be assigned; a config holds tuples.
        settings = {
            name: tuple(value) if isinstance(value := getattr(self, name), list) else value
            for name in _DEFAULTS
        }
        if self.reranker is not None:
            # By value: copies made through the constructor name every field.
            if settings != _DEFAULTS:
                extra = ", ".join(name for name in settings if not self._is_default(name))
                raise ConfigError(f"reranker= has its own settings; leave out {extra}")
            self._opened = None
            return self.reranker
        # Fields may be assigned after the first use; equal settings share one engine anyway.
        if self._opened is None or not _same(settings, dict(self._opened.config)):
            self._opened = Reranker.from_config(RerankConfig(**settings))
        return self._opened

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == _DEFAULTS[name])

    @model_validator(mode="after")
    def _open_from_one_source(self) -> Self:
        # Held from now on, though nothing is loaded yet: short-lived copies of this door, such as
        # the frameworks make for each request, would otherwise load the model again each time.
        self._open()
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # A copy of the door uses the same reranker: models are shared, never copied.
        memo = {} if memo is None else memo
        for shared in (self.reranker, self._opened):
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # What differs from the defaults says it all, and tracers record it.
        for name, value in super().__repr_args__():
            if name not in _DEFAULTS or not self._is_default(name):
                yield name, value


def _same(settings: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    # Observers by identity: equal ones may keep accounts of their own.
    return settings == others and all(map(is_, settings["observers"], others["observers"]))


class Door(ScoringDoor):
    """A door whose answers are rankings: which documents are kept, besides `ScoringDoor`."""

    # Strict, as `Reranker.rank` is: True is no number of documents.
    score_threshold: float | None = Field(
        default=None, strict=True, allow_inf_nan=False, description="lowest score that is kept"
    )
    min_results: int = Field(
        default=0, ge=0, strict=True, description="results kept whatever the threshold"
    )

    def _rank(
        self,
        query: str,
        texts: Sequence[str],
        top_n: int | None,
        **overrides: Unpack[CallOverrides],
    ) -> Ranking:
        return self._open().rank(
            query,
            texts,
            top_n=top_n,
            score_threshold=self.score_threshold,
            min_results=self.min_results,
            **overrides,
        )

    async def _arank(
        self,
        query: str,
        texts: Sequence[str],
        top_n: int | None,
        **overrides: Unpack[CallOverrides],
    ) -> Ranking:
        return await self._open().arank(
            query,
            texts,
            top_n=top_n,
            score_threshold=self.score_threshold,
            min_results=self.min_results,
            **overrides,
        )


def check_items(items: object, kind: type[T], argument: str) -> list[T]:
    """Return *items*, which may be a generator, as a list.

    Raises:
        InputTypeError: one is no *kind*, by its index; or *items* cannot be gone through.
    """
    if not isinstance(items, Iterable):
        raise InputTypeError(
            f"{argument} must be a sequence of {kind.__name__}, got {type(items).__name__}"
        )
    found = []
    for i, item in enumerate(items):
        if not isinstance(item, kind):
            raise InputTypeError(
                f"{argument}[{i}] must be a {kind.__name__}, got {type(item).__name__}"
            )
        found.append(item)
    return found


def scored_metadata(
    metadata: Mapping[str, Any], *, came_with: object, score: float, scorer: str
) -> dict[str, Any]:
    """Copy *metadata*, whose values are shared, with the score beside the one it *came_with*.

    A ``retrieval_score`` that is there is kept: the first of several rerankers saw the retriever's
    own. A score to keep that is NaN or infinite is left out, for strict JSON cannot hold it.
    """
    copied = {**metadata, RELEVANCE_SCORE: score, RERANKED_BY: scorer}
    kept = not isinstance(came_with, Real) or math.isfinite(came_with)
    if came_with is not None and kept:
        copied.setdefault(RETRIEVAL_SCORE, came_with)
    return copied
