"""Texts to token ids: a query once, each document, cut by a named rule and joined by a template."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Self

import numpy as np

from rerank_plugins.config import SpecialTokens, Truncation
from rerank_plugins.models.special_tokens import TextTokenizer
from rerank_plugins.models.token_cache import TokenCache, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer


TOKEN_CACHE_BYTES = 64_000_000
"""About 50 000 documents of 240 words, so that a further query on them is tokenised alone."""

LEAST_ROOM = 4
"""Fewest tokens of text in a pair: two of each side."""


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Token ids, (tokens,), with which all pairs of one query begin, and a digest of them."""

    ids: NDArray[np.int32]
    key: bytes

    @property
    def tokens(self) -> int:
        """How many they are."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class TokenPair:
    """A query and a document as token ids.

    ``ids`` and ``segments`` (0 and 1 in BERT, 0 elsewhere) have shape (tokens,); ``segments`` is
    None where the model does not read them. ``truncated`` says that the document was cut. Where the
    pair has a ``prefix``, ``ids`` are those that follow it.
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int32] | None
    truncated: bool
    prefix: Prefix | None = None

    @property
    def tokens(self) -> int:
        """Length with the special tokens and the prefix."""
        return len(self.ids) + (self.prefix.tokens if self.prefix is not None else 0)

    @property
    def all_ids(self) -> NDArray[np.int32]:
        """``ids`` after those of the prefix, (tokens,)."""
        return self.ids if self.prefix is None else np.concatenate([self.prefix.ids, self.ids])


def pad(pairs: Sequence[TokenPair], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Return a model's inputs by name, each (pairs, longest), short rows filled on the right."""
    shape = len(pairs), max(pair.tokens for pair in pairs)
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    segments = np.zeros(shape, dtype=np.int64)
    for row, pair in enumerate(pairs):
        ids[row, : pair.tokens] = pair.all_ids
        mask[row, : pair.tokens] = 1
        if pair.segments is not None:
            segments[row, : pair.tokens] = pair.segments
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


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


class PairEncoder:
    """Encodes pairs with a tokenizer whose state is set here and never touched again.

    That makes `encode` safe in many threads at once. Ids equal those of a fast tokenizer of
    transformers called on the pair, with one difference: where *special_tokens* are plain, the text
    of one inside a query or document ("[SEP]", "</s>") is spelled out, so that a document cannot
    pretend to end, or to be a query.

    Raises:
        ValueError: the tokenizer makes no pairs, or *max_length* leaves no room for the texts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        truncation: Truncation = Truncation.AUTO,
        special_tokens: SpecialTokens = SpecialTokens.PLAIN,
        cut_left: bool = False,
        segments: bool = True,
    ) -> None:
        self._tokenizer = TextTokenizer(tokenizer, special_tokens)
        self.max_length = max_length
        self.truncation = Truncation.LONGEST_FIRST if truncation is Truncation.AUTO else truncation
        self.template = PairTemplate.learn(tokenizer)
        if max_length < self.template.length + LEAST_ROOM:
            raise ValueError(
                f"{max_length} tokens have no room for two texts beside the {self.template.length} "
                "special ones; correct model_max_length and max_position_embeddings, or set "
                "max_length"
            )
        self._cut_left = cut_left
        self._segments = segments
        self._documents = TokenCache(TOKEN_CACHE_BYTES)

    @property
    def identity(self) -> str:
        """What changes the ids of a pair, for a scorer's own identity."""
        template = blake2b(repr(self.template).encode(), digest_size=4).hexdigest()
        side = " from the left" if self._cut_left else ""
        segments = "" if self._segments else " without segments"
        special = self._tokenizer.identity
        return (
            f"{self.truncation}{side} at {self.max_length}, template {template}{segments}{special}"
        )

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, or None where there is no such."""
        return self._tokenizer.token_to_id(token)

    def encode(self, query: str, documents: Sequence[str]) -> list[TokenPair]:
        """Encode one query with each document, in order."""
        if not documents:
            return []
        known = self._documents.look_up(documents)
        new = [text for text, tokens in zip(documents, known, strict=True) if tokens is None]
        encoded = self._tokenizer.encode([query, *new])
        query_tokens = self._plain(encoded[0])
        fresh = iter(encoded[1:])
        return [
            self._pair(query_tokens, tokens or self._learn(text, next(fresh)))
            for text, tokens in zip(documents, known, strict=True)
        ]

    def _learn(self, text: str, encoded: Encoding) -> Tokens:
        tokens = self._plain(encoded)
        self._documents.keep(text, tokens)
        return tokens

    def _pair(self, query: Tokens, document: Tokens) -> TokenPair:
        room = max(0, self.max_length - self.template.length)
        if self.truncation is Truncation.ONLY_SECOND:
            kept = cut_only_second(query.length, document.length, room, self.max_length)
        else:
            kept = cut_longest_first(query.length, document.length, room)
        ids, segments = self.template.join(
            self._cut(query.ids, kept[0]), self._cut(document.ids, kept[1])
        )
        return TokenPair(
            ids=ids,
            segments=segments if self._segments else None,
            truncated=kept[1] < document.length,
        )

    def _cut(self, ids: NDArray[np.int32], kept: int) -> NDArray[np.int32]:
        return ids[len(ids) - kept :] if self._cut_left else ids[:kept]

    def _plain(self, encoded: Encoding) -> Tokens:
        """Return a text's tokens, as many of them as a pair may hold."""
        ids = self._tokenizer.ids(encoded)
        # int32: half the memory of int64 while a pair waits and a document is kept.
        return Tokens(self._cut(np.array(ids, np.int32), min(len(ids), self.max_length)), len(ids))
