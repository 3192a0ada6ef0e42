"""Rerank what a first stage found, in an order that owes nothing to it."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import InputError
from rerank_plugins.requests import check_query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rerank_plugins.evaluation.sets import Query, RetrievalSet
    from rerank_plugins.reranker import Reranker
    from rerank_plugins.results import Ranking

SEED: Final = 13
"""Where the shuffles begin, unless told otherwise: a second run gives the same."""


@dataclass(frozen=True, slots=True)
class Reranked:
    """Document ids by query id, best first, and what it took to rank them.

    ``scorers`` counts the queries that each scorer answered; ``pairs`` are those of documents that
    were neither dropped nor found to be copies; ``seconds`` is time inside `Reranker.rank` alone.
    """

    rankings: Mapping[str, tuple[str, ...]]
    scorers: Mapping[str, int]
    pairs: int
    seconds: float

    @property
    def pairs_per_s(self) -> float:
        """Pairs scored in a second; 0 where there were none."""
        return self.pairs / self.seconds if self.seconds else 0.0


def choose_queries(
    dataset: RetrievalSet, limit: int | None = None, *, seed: int = SEED
) -> tuple[Query, ...]:
    """Return the judged queries, or *limit* of them drawn by *seed*, in file order.

    Raises:
        InputError: nothing is judged that could be found, or a query of these is blank.
    """
    chosen = dataset.judged_queries
    if not chosen:
        raise InputError(f"{dataset.name}: no query has a relevant document in the qrels")
    relevant = {docid for query in chosen for docid in _relevant(dataset, query)}
    if relevant <= dataset.missing_documents:
        raise InputError(f"{dataset.name}: no relevant document of the qrels is in the corpus")
    if limit is not None and limit < len(chosen):
        # Files are often sorted by subject: the first ones would speak for one of them.
        drawn = random.Random(seed).sample(range(len(chosen)), limit)  # noqa: S311  not a secret
        chosen = tuple(chosen[place] for place in sorted(drawn))
    for query in chosen:
        check_query(query.text, f"{query.where}: query {query.qid!r}")
    return chosen


def shuffled(docids: Sequence[str], qid: str, *, seed: int = SEED) -> list[str]:
    """Return *docids* in an order that depends on them, the query id and *seed* alone.

    Equal scores keep the order in which documents are given: a scorer that says nothing would
    otherwise be credited with the first stage's work.
    """
    order = sorted(docids)
    random.Random(f"{seed}:{qid}").shuffle(order)  # noqa: S311  not a secret
    return order


def warm_up(reranker: Reranker, queries: Iterable[Query]) -> None:
    """Open every model that will answer one of *queries*, so that no loading is timed.

    Nothing stays in the cache.

    Raises:
        InputError: a query that cannot be ranked by, with its id.
    """
    seen = set()
    for query in queries:
        # A blank document is routed like any other, and costs no scoring.
        scorer = _rank(reranker, query, [""]).scorer
        if scorer not in seen:
            seen.add(scorer)
            _rank(reranker, query, [query.text])
    reranker.clear_cache()


def rerank(
    reranker: Reranker,
    dataset: RetrievalSet,
    found: Mapping[str, Sequence[str]],
    *,
    seed: int = SEED,
    on_query: Callable[[], object] | None = None,
) -> Reranked:
    """Rank the documents *found* for each query id, shuffled; *on_query* follows each query."""
    queries = {query.qid: query for query in dataset.queries}
    rankings: dict[str, tuple[str, ...]] = {}
    scorers: Counter[str] = Counter()
    pairs, seconds = 0, 0.0
    for qid, first in found.items():
        docids = shuffled(first, qid, seed=seed)
        documents = [dataset.documents[docid].full_text for docid in docids]
        start = time.perf_counter()
        ranking = _rank(reranker, queries[qid], documents)
        seconds += time.perf_counter() - start
        rankings[qid] = tuple(docids[document.index] for document in ranking)
        scorers[ranking.scorer] += 1
        pairs += sum(document.duplicate_of is None for document in ranking)
        if on_query is not None:
            on_query()
    return Reranked(rankings, dict(scorers), pairs, seconds)


def _rank(reranker: Reranker, query: Query, documents: Sequence[str]) -> Ranking:
    try:
        return reranker.rank(query.text, documents)
    except InputError as exc:
        # Cleaning may leave nothing of a query; which one it was is not in the message.
        raise InputError(f"{query.where}: query {query.qid!r}: {exc}") from None


def _relevant(dataset: RetrievalSet, query: Query) -> list[str]:
    return [docid for docid, grade in dataset.grades[query.qid].items() if grade > 0]
