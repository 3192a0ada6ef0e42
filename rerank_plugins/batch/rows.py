"""What a batch writes: one row for each ranked document, the same in every format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rerank_plugins.batch.arrow import import_arrow
from rerank_plugins.batch.queries import BadQuery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.batch.queries import BatchQuery
    from rerank_plugins.results import Ranking

Answer = tuple["BatchQuery", "Ranking"] | BadQuery
"""What became of one query."""


@dataclass(frozen=True, slots=True)
class RankedChunk:
    """The rows of a chunk as a pyarrow table, and what is told of it.

    ``scorers`` counts the queries by who answered them; ``skipped`` are the bad ones.
    """

    table: Any
    queries: int
    pairs: int
    scorers: dict[str, int]
    skipped: tuple[str, ...]


def schema(*, texts: bool) -> Any:  # noqa: ANN401  pyarrow has no types
    """Return the columns, in order, as a pyarrow schema."""
    arrow = import_arrow()
    columns = [
        # The place of the query in the input, from 0: ids may be absent, or there twice.
        ("query_index", arrow.int64()),
        ("query_id", arrow.string()),
        ("rank", arrow.int32()),
        ("index", arrow.int32()),
        ("document_id", arrow.string()),
        ("score", arrow.float64()),
        ("logit", arrow.float64()),
        ("truncated", arrow.bool_()),
        ("scorer", arrow.string()),
    ]
    if texts:
        columns += [("query", arrow.string()), ("document", arrow.string())]
    return arrow.schema(columns)


def ranked_chunk(first: int, answers: Sequence[Answer], *, texts: bool) -> RankedChunk:
    """Put the answers to consecutive queries into rows; *first* is the number of the first."""
    scorers: Counter[str] = Counter()
    skipped: list[str] = []
    rows: list[dict[str, object]] = []
    pairs = 0
    for number, answer in enumerate(answers, start=first):
        if isinstance(answer, BadQuery):
            skipped.append(answer.reason)
            continue
        query, ranking = answer
        scorers[ranking.scorer] += 1
        pairs += len(query.documents)
        rows += _rows_of(number, query, ranking, texts=texts)
    table = import_arrow().Table.from_pylist(rows, schema=schema(texts=texts))
    return RankedChunk(table, len(answers) - len(skipped), pairs, dict(scorers), tuple(skipped))


def _rows_of(
    number: int, query: BatchQuery, ranking: Ranking, *, texts: bool
) -> list[dict[str, object]]:
    return [
        {
            "query_index": number,
            "query_id": query.query_id,
            "rank": rank,
            "index": document.index,
            "document_id": query.document_ids[document.index],
            "score": document.score,
            "logit": document.logit,
            "truncated": document.truncated,
            "scorer": ranking.scorer,
            **({"query": query.text, "document": document.text} if texts else {}),
        }
        for rank, document in enumerate(ranking, start=1)
    ]
