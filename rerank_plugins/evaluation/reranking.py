"""Rerank what a first stage found, in an order that owes nothing to it."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rerank_plugins.evaluation.sets import Query, RetrievalSet
    from rerank_plugins.reranker import Reranker

SEED: Final = 13
"""Where the shuffles begin, unless told otherwise: a second run gives the same."""


@dataclass(frozen=True, slots=True)
class Reranked:
    """Document ids by query id, best first, and what it took to rank them.

    ``scorers`` counts the queries that each scorer answered; ``seconds`` is time inside
    `Reranker.rank` alone.
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
    """Return the judged queries, or *limit* of them drawn by *seed*, in file order."""
    judged = dataset.judged_queries
    if limit is None or limit >= len(judged):
        return judged
    # Files are often sorted by subject: the first ones would speak for one of them.
    drawn = random.Random(seed).sample(range(len(judged)), limit)  # noqa: S311  not a secret
    return tuple(judged[place] for place in sorted(drawn))


def shuffled(docids: Sequence[str], qid: str, *, seed: int = SEED) -> list[str]:
    """Return *docids* in an order that depends on them, the query id and *seed* alone.

    Equal scores keep the order in which documents are given: a scorer that says nothing would
    otherwise be credited with the first stage's work.
    """
    order = sorted(docids)
    random.Random(f"{seed}:{qid}").shuffle(order)  # noqa: S311  not a secret
    return order


def rerank(
    reranker: Reranker,
    dataset: RetrievalSet,
    candidates: Mapping[str, Sequence[str]],
    *,
    seed: int = SEED,
    on_query: Callable[[], object] | None = None,
) -> Reranked:
    """Rank each query's *candidates*, shuffled; *on_query* is called after each query."""
    texts = {query.qid: query.text for query in dataset.queries}
    rankings: dict[str, tuple[str, ...]] = {}
    scorers: Counter[str] = Counter()
    pairs, seconds = 0, 0.0
    for qid, found in candidates.items():
        docids = shuffled(found, qid, seed=seed)
        documents = [dataset.documents[docid].full_text for docid in docids]
        start = time.perf_counter()
        ranking = reranker.rank(texts[qid], documents)
        seconds += time.perf_counter() - start
        rankings[qid] = tuple(docids[document.index] for document in ranking)
        scorers[ranking.scorer] += 1
        pairs += len(docids)
        if on_query is not None:
            on_query()
    return Reranked(rankings, dict(scorers), pairs, seconds)
