"""Texts to token ids: a query once, each document, cut by a named rule and joined by a template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from rerank_plugins.config import Truncation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer


LEAST_ROOM = 4
"""Fewest tokens of text in a pair: two of each side."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenPair:
    """A query and a document as token ids.

    ``ids`` and ``segments`` (0 and 1 in BERT, 0 elsewhere) have shape (tokens,); ``segments`` is
    None where the model does not read them. ``truncated`` says that the document was cut.
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int32] | None
    truncated: bool

    @property
    def tokens(self) -> int:
        """Length with the special tokens."""
        return len(self.ids)


def cut_longest_first(query: int, document: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text stay, as the tokenizers library cuts a pair.

    The longer text is cut to the length of the shorter, then both alike; an odd token goes to the
    longer, or to the document where they are equal. This is ``truncate_encodings`` of
    tokenizers (``truncation.rs``), which transformers and sentence-transformers use for
    ``truncation="longest_first"``.
    """
    if query + document <= room:
        return query, document
    shorter = min(query, document)
    longer = room - shorter
    if longer < shorter:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if query > document else (shorter, longer)


def cut_only_second(query: int, document: int, room: int, max_length: int) -> tuple[int, int]:
    """Return how many tokens of each text stay, as FlagEmbedding's rerankers cut a pair.

    The query is capped at three quarters of *max_length*, then the document alone is cut. Where
    that leaves no room at all (a *max_length* below 17), FlagEmbedding gives up and passes a pair
    that is too long; here the document is dropped and the query cut.
    """
    query = min(query, max_length * 3 // 4, room)
    return query, min(document, room - query)


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
            encoded.ids[query:query_end], encoded.ids[document:document_end]
        )
        if (ids, segments) != (encoded.ids, encoded.type_ids):
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

    def join(self, query: Sequence[int], document: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return ids and segments of the whole pair, each (tokens,)."""
        ids = [
            *(token for token, _ in self.before),
            *query,
            *(token for token, _ in self.between),
            *document,
            *(token for token, _ in self.after),
        ]
        segments = [
            *(segment for _, segment in self.before),
            *[self.query_segment] * len(query),
            *(segment for _, segment in self.between),
            *[self.document_segment] * len(document),
            *(segment for _, segment in self.after),
        ]
        return ids, segments


class PairEncoder:
    """Encodes pairs with a tokenizer whose state is set here and never touched again.

    That makes `encode` safe in many threads at once. Ids equal those of a fast tokenizer of
    transformers called on the pair, with one difference: the text of a special token inside a
    query or document ("[SEP]", "</s>") is spelled out as plain text, so that a document cannot
    pretend to end, or to be a query.

    Raises:
        ValueError: the tokenizer makes no pairs, or *max_length* leaves no room for the texts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        truncation: Truncation = Truncation.LONGEST_FIRST,
        cut_left: bool = False,
        segments: bool = True,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.max_length = max_length
        self.truncation = truncation
        self.template = PairTemplate.learn(tokenizer)
        if max_length < self.template.length + LEAST_ROOM:
            raise ValueError(
                f"{max_length} tokens have no room for two texts beside the {self.template.length} "
                "special ones; correct model_max_length and max_position_embeddings, or set "
                "max_length"
            )
        self._tokenizer = tokenizer
        self._cut_left = cut_left
        self._segments = segments
        self._spelling = _spell_special_tokens(tokenizer)

    def encode(self, query: str, documents: Sequence[str]) -> list[TokenPair]:
        """Encode one query with each document, in order."""
        if not documents:
            return []
        encoded = self._tokenizer.encode_batch_fast([query, *documents], add_special_tokens=False)
        query_ids = self._plain(encoded[0])
        return [self._pair(query_ids, self._plain(document)) for document in encoded[1:]]

    def _pair(self, query: list[int], document: list[int]) -> TokenPair:
        room = max(0, self.max_length - self.template.length)
        if self.truncation is Truncation.ONLY_SECOND:
            kept = cut_only_second(len(query), len(document), room, self.max_length)
        else:
            kept = cut_longest_first(len(query), len(document), room)
        ids, segments = self.template.join(self._cut(query, kept[0]), self._cut(document, kept[1]))
        return TokenPair(
            # Half the memory of int64 while the pair waits.
            ids=np.array(ids, dtype=np.int32),
            segments=np.array(segments, dtype=np.int32) if self._segments else None,
            truncated=kept[1] < len(document),
        )

    def _cut(self, ids: list[int], kept: int) -> list[int]:
        return ids[len(ids) - kept :] if self._cut_left else ids[:kept]

    def _plain(self, encoded: Encoding) -> list[int]:
        ids = encoded.ids
        if self._spelling.keys().isdisjoint(ids):
            return ids
        return [plain for token in ids for plain in self._spelling.get(token, (token,))]


def _spell_special_tokens(tokenizer: Tokenizer) -> dict[int, tuple[int, ...]]:
    """Return the ids that spell the text of each special token, character by character.

    ``encode_special_tokens`` keeps the tokenizer from looking for special tokens, but a Unigram
    vocabulary lists "</s>" as a piece of text like any other, and prefers it.
    """
    # A character that no vocabulary holds: what comes out of it comes out of plain text.
    unknown = {token.id for token in tokenizer.model.tokenize("\U0010fffe")}
    special = {
        token_id: token.content
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and token_id not in unknown
    }
    return {
        token_id: tuple(
            token.id
            for character in content
            for token in tokenizer.model.tokenize(character)
            if token.id not in special
        )
        for token_id, content in special.items()
    }
