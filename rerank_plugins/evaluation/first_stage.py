"""The first stage that reranking starts from: BM25 over terms of any language."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import MissingExtraError
from rerank_plugins.text.terms import split_terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rerank_plugins.evaluation.sets import Query, RetrievalSet

K1: Final = 0.9
B: Final = 0.4
"""The settings of Anserini and Pyserini, which published BM25 baselines use."""

DEPTH: Final = 100
"""Documents per query that the first stage hands on."""


class FirstStage:
    """A BM25 index of texts, without stemming; characters in pairs where words have no spaces.

    Raises:
        MissingExtraError: the package ``bm25s`` is not installed.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        try:
            import bm25s  # type: ignore[import-untyped]
        except ImportError:
            raise MissingExtraError(
                package="bm25s", extra="eval", needed_for="the BM25 first stage"
            ) from None
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        terms = [_terms(text) for text in texts]
        # An index of nothing cannot be built, and finds nothing.
        self._blank = not any(terms)
        if not self._blank:
            self._index.index(terms, show_progress=False)

    def search(self, query: str, limit: int = DEPTH) -> list[tuple[int, float]]:
        """Return at most *limit* (place of the text, score), best first, ties in text order.

        Texts that share no term with the query are not listed.
        """
        if self._blank:
            return []
        known = [term for term in _terms(query) if term in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        best = (-scores).argsort(kind="stable")[:limit]
        return [(int(place), float(scores[place])) for place in best if scores[place] > 0.0]


def first_stage(
    dataset: RetrievalSet, queries: Sequence[Query], *, depth: int = DEPTH
) -> dict[str, tuple[str, ...]]:
    """Return the document ids to rerank for each query id: those given, or else BM25's."""
    if dataset.first_stage is not None:
        given = dataset.first_stage
        return {query.qid: tuple(given.get(query.qid, ())[:depth]) for query in queries}
    docids = list(dataset.documents)
    index = FirstStage(document.full_text for document in dataset.documents.values())
    return {
        query.qid: tuple(docids[place] for place, _ in index.search(query.text, depth))
        for query in queries
    }


def _terms(text: str) -> list[str]:
    return split_terms(unicodedata.normalize("NFKC", text))
