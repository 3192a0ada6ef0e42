"""The lexical scorer: weighted word overlap, any language, no model file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

from rerank_plugins.models.lexical import LexicalQuery, prepare_query, score_terms, to_logit
from rerank_plugins.models.term_weights import TermWeights
from rerank_plugins.options import LEXICAL
from rerank_plugins.text.terms import split_terms

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION: Final = 1
"""Raised with every change of the rule or its data: logits of two versions are not one scale."""


@dataclass(frozen=True, slots=True)
class LexicalPair:
    """A weighed query with the terms of one document."""

    query: LexicalQuery
    terms: list[str]

    @property
    def tokens(self) -> int:
        """Terms of the document, at least 1."""
        return max(1, len(self.terms))

    @property
    def truncated(self) -> bool:
        """Never: documents are read whole, whatever ``max_length`` says."""
        return False


class LexicalScorer:
    """Scores a document by the query's terms that it holds, rare ones most.

    Term weights come from background text that ships with the package, never from the other
    documents, so that a logit depends on its pair alone. The sigmoid of the logit estimates the
    probability that the document is relevant.
    """

    name = LEXICAL
    identity = f"{LEXICAL}/{VERSION}"
    activation: Literal["sigmoid"] = "sigmoid"
    languages = None
    # Counting words is cheap; a batch this size takes a few milliseconds between two callers.
    batch_tokens = 16_384
    padded = False

    def __init__(self, weights: TermWeights) -> None:
        self._weights = weights

    @classmethod
    def open(cls) -> Self:
        """Read the term weights that ship with the package."""
        return cls(TermWeights.load())

    def encode(self, query: str, documents: Sequence[str]) -> list[LexicalPair]:
        """Cut the texts into terms; the query is weighed once."""
        prepared = prepare_query(split_terms(query), self._weights)
        return [LexicalPair(prepared, split_terms(document)) for document in documents]

    def forward(self, pairs: Sequence[LexicalPair]) -> list[float]:
        """Return (pairs,) logits."""
        return [
            to_logit(pair.query, score_terms(pair.query, pair.terms, self._weights))
            for pair in pairs
        ]

    def close(self) -> None:
        """Nothing to free: the weights are shared by the process."""
