"""What both framework doors share: the settings as fields, and the reranker behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PrivateAttr, model_validator

from rerank_plugins.config import RerankConfig, Settings
from rerank_plugins.reranker import Reranker

if TYPE_CHECKING:
    from collections.abc import Iterator

RELEVANCE_SCORE = "relevance_score"
"""Metadata key of the reranker's score: a Python float, higher is better."""

RETRIEVAL_SCORE = "retrieval_score"
"""Metadata key of the score that a document came with, where it came with one."""

RERANKED_BY = "reranked_by"
"""Metadata key of the scorer that answered."""


class ScoringDoor(Settings):
    """Settings and reranker of a framework's adapter; the adapter holds no scoring logic.

    Either ``reranker=``, one that stands and stays its owner's, or the settings by their names.
    Doors of equal settings share one engine, whose model is loaded at first use.
    """

    reranker: Reranker | None = Field(default=None, exclude=True, repr=False)

    _opened: Reranker | None = PrivateAttr(default=None)

    def opened(self) -> Reranker:
        """Return the reranker behind this door, opening one of its settings if need be."""
        if self.reranker is not None:
            return self.reranker
        config = RerankConfig(**self._settings())
        # Fields may be assigned after the first use; equal settings share one engine anyway.
        if self._opened is None or self._opened.config != config:
            self._opened = Reranker.from_config(config)
        return self._opened

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in RerankConfig.model_fields}

    def _is_default(self, name: str) -> bool:
        field = RerankConfig.model_fields[name]
        return bool(getattr(self, name) == field.get_default(call_default_factory=True))

    @model_validator(mode="after")
    def _open_from_one_source(self) -> Self:
        # By value: copies made through the constructor name every field.
        extra = [name for name in RerankConfig.model_fields if not self._is_default(name)]
        if self.reranker is not None and extra:
            raise ValueError(f"reranker= has its own settings; leave out {', '.join(extra)}")
        # Held from now on, though nothing is loaded yet: short-lived copies of this door, such as
        # the frameworks make for each request, would otherwise load the model again each time.
        self.opened()
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # A copy of the door uses the same reranker: models are shared, never copied.
        memo = {} if memo is None else memo
        for shared in (self.reranker, self._opened):
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # What differs from the defaults says it all, and tracers record it: a plugged-in object
        # is named by its type, for its own repr may hold a secret.
        for name, value in super().__repr_args__():
            if name in RerankConfig.model_fields and self._is_default(name):
                continue
            if name in RerankConfig.model_fields and callable(value):
                yield name, getattr(value, "__qualname__", type(value).__qualname__)
            else:
                yield name, value


class Door(ScoringDoor):
    """A door whose answers are rankings: which documents are kept, besides `ScoringDoor`."""

    score_threshold: float | None = Field(default=None, description="lowest score that is kept")
    min_results: int = Field(default=0, ge=0, description="results kept whatever the threshold")
