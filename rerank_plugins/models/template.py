"""The special tokens that a tokenizer puts around a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """The special tokens around a pair: ``before query between document after``.

    Each part holds (id, segment) of its tokens; the texts have one segment each.
    """

    before: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]
    query_segment: int
    document_segment: int

    @classmethod
    def learn(cls, tokenizer: Tokenizer) -> Self:
        """Read the template off a pair that *tokenizer* joins itself.

        Raises:
            ValueError: its pairs are not of this form.
        """
        encoded = tokenizer.encode("a query", "and its document")
        sides = encoded.sequence_ids
        marked = list(zip(encoded.ids, encoded.type_ids, strict=True))
        if 0 not in sides or 1 not in sides:
            raise ValueError("it gives no tokens for plain English words")
        query, document = sides.index(0), sides.index(1)
        query_end, document_end = query + sides.count(0), document + sides.count(1)
        template = cls(
            before=tuple(marked[:query]),
            between=tuple(marked[query_end:document]),
            after=tuple(marked[document_end:]),
            query_segment=marked[query][1],
            document_segment=marked[document][1],
        )
        ids, segments = template.join(
            np.array(encoded.ids[query:query_end], np.int32),
            np.array(encoded.ids[document:document_end], np.int32),
        )
        if (ids.tolist(), segments.tolist()) != (encoded.ids, encoded.type_ids):
            raise ValueError("it does not join two texts as: special tokens, query, …, document, …")
        if not template.length:
            # Without them the model sees one text, and its scores are off by a little.
            why = "" if tokenizer.post_processor else "; tokenizer.json has no post_processor"
            raise ValueError(f"it puts no special tokens around a pair{why}")
        return template

    @property
    def length(self) -> int:
        """Special tokens in a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(
        self, query: NDArray[np.int32], document: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return ids and segments of the whole pair, each (tokens,)."""
        ids = [_column(self.before, 0), query, _column(self.between, 0), document]
        segments = [
            _column(self.before, 1),
            np.full(len(query), self.query_segment, np.int32),
            _column(self.between, 1),
            np.full(len(document), self.document_segment, np.int32),
        ]
        return (
            np.concatenate([*ids, _column(self.after, 0)]),
            np.concatenate([*segments, _column(self.after, 1)]),
        )


def _column(part: tuple[tuple[int, int], ...], place: int) -> NDArray[np.int32]:
    return np.array([token[place] for token in part], np.int32)
