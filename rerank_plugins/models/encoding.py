"""Texts to token ids: a query once, each document, cut by a named rule and joined by a template."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from rerank_plugins.models.special_tokens import TextTokenizer
from rerank_plugins.models.template import PairTemplate
from rerank_plugins.models.token_cache import TokenCache, Tokens
from rerank_plugins.models.windows import in_windows
from rerank_plugins.options import SpecialTokens, Truncation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

    from rerank_plugins.models.windows import WindowedPair, WindowRule

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


class PairEncoder:
    """Encodes pairs with a tokenizer whose state is set here and never touched again.

    That makes `encode` safe in many threads at once. Ids equal those of a fast tokenizer of
    transformers called on the pair, with one difference: where *special_tokens* are plain, the text
    of one inside a query or document ("[SEP]", "</s>") is spelled out, so that a document cannot
    pretend to end, or to be a query. With *windows*, a document longer than the room that the
    truncation leaves it becomes several pairs, which hold all of it.

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
        windows: WindowRule | None = None,
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
        self._windows = windows
        self._documents = TokenCache(TOKEN_CACHE_BYTES)

    @property
    def identity(self) -> str:
        """What changes the ids of a pair, for a scorer's own identity."""
        template = blake2b(repr(self.template).encode(), digest_size=4).hexdigest()
        side = " from the left" if self._cut_left else ""
        segments = "" if self._segments else " without segments"
        windows = f", {self._windows}" if self._windows is not None else ""
        cut = f"{self.truncation}{side} at {self.max_length}"
        return f"{cut}, template {template}{segments}{windows}{self._tokenizer.identity}"

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, or None where there is no such."""
        return self._tokenizer.token_to_id(token)

    def encode(
        self, query: str, documents: Sequence[str]
    ) -> list[TokenPair | WindowedPair[TokenPair]]:
        """Encode one query with each document, in order."""
        if not documents:
            return []
        known = self._documents.look_up(documents)
        new = [text for text, tokens in zip(documents, known, strict=True) if tokens is None]
        encoded = self._tokenizer.encode([query, *new], offsets=self._windows is not None)
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

    def _pair(self, query: Tokens, document: Tokens) -> TokenPair | WindowedPair[TokenPair]:
        room = max(0, self.max_length - self.template.length)
        if self.truncation is Truncation.ONLY_SECOND:
            kept = cut_only_second(query.length, document.length, room, self.max_length)
        else:
            kept = cut_longest_first(query.length, document.length, room)
        asked = self._cut(query.ids, kept[0])
        truncated = kept[1] < document.length
        # Beside a query that takes all the room there is no window, and nothing of the document.
        if truncated and self._windows is not None and kept[1]:
            return in_windows(document, kept[1], self._windows, partial(self._join, asked))
        return self._join(asked, self._cut(document.ids, kept[1]), truncated=truncated)

    def _join(
        self, query: NDArray[np.int32], document: NDArray[np.int32], *, truncated: bool = False
    ) -> TokenPair:
        ids, segments = self.template.join(query, document)
        return TokenPair(ids, segments if self._segments else None, truncated)

    def _cut(self, ids: NDArray[np.int32], kept: int) -> NDArray[np.int32]:
        return ids[len(ids) - kept :] if self._cut_left else ids[:kept]

    def _plain(self, encoded: Encoding) -> Tokens:
        """Return a text's tokens: as many as a pair may hold, or all where windows need them."""
        ids, offsets = self._tokenizer.read(encoded, offsets=self._windows is not None)
        # int32: half the memory of int64 while a pair waits and a document is kept.
        whole = np.array(ids, np.int32)
        if offsets is not None:
            return Tokens(whole, len(ids), offsets)
        if len(ids) > self.max_length:
            # A copy: a view would keep all ids of a long document as long as these few are kept.
            whole = self._cut(whole, self.max_length).copy()
        return Tokens(whole, len(ids))
