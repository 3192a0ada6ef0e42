"""What both framework doors share: the settings as fields, and the reranker behind them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PrivateAttr

from rerank_plugins.config import RerankConfig, Settings
from rerank_plugins.reranker import Reranker

RELEVANCE_SCORE = "relevance_score"
"""Metadata key of the reranker's score: a Python float, higher is better."""

RETRIEVAL_SCORE = "retrieval_score"
"""Metadata key of the score that a document came with, where it came with one."""

RERANKED_BY = "reranked_by"
"""Metadata key of the scorer that answered."""


class Door(Settings):
    """Fields and reranker of a framework's adapter; the adapter holds no scoring logic.

    Either ``reranker=``, one that stands and stays its owner's, or the settings by their names; a
    reranker of the settings is opened at first use and shared with every door of equal settings.
    """

    reranker: Reranker | None = Field(default=None, exclude=True, repr=False)
    score_threshold: float | None = Field(default=None, description="lowest score that is kept")
    min_results: int = Field(default=0, ge=0, description="results kept whatever the threshold")

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
