"""Pairs as prompts for a language model: the query's part once, each document, cut and joined.

Ids equal those that the family's reference gets from its strings. Where it tokenises query and
document as one string, they are tokenised apart only as far as the string's tokens part there too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rerank_plugins.config import SpecialTokens, Truncation
from rerank_plugins.models.encoding import (
    LEAST_ROOM,
    TOKEN_CACHE_BYTES,
    Prefix,
    TokenPair,
    cut_longest_first,
)
from rerank_plugins.models.families import DOCUMENT, INSTRUCTION, QUERY, fill
from rerank_plugins.models.special_tokens import TextTokenizer
from rerank_plugins.models.token_cache import TokenCache, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from rerank_plugins.models.families import Family

SEAM_CHARACTERS: Final = 64
"""How much of a document is looked at to see whether a token crosses its beginning."""

SEAM_PROBES: Final = ("a", "A1", "1", "\n", "  ", ".", "(", "'s", "中", "é", "\u0301", "\U0001f600")
"""Beginnings of documents that a tokenizer is tried on."""

OTHER_SHARE: Final = 0.75
"""The most that a query takes of the room with ``only_second`` where its family knows no bound."""


class Part(NamedTuple):
    """A stretch of a prompt: text that is tokenised at once, or the id of a special token."""

    text: str
    token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """A family's prompt, split at special tokens and at its places.

    The document is tokenised as ``lead document trail``. With *together*, the reference tokenises
    that as one string with the query's text, *query*.
    """

    before: tuple[Part, ...]
    query: str
    between: tuple[Part, ...]
    together: bool
    lead: str
    trail: str
    after: tuple[Part, ...]

    @classmethod
    def of(cls, family: Family, added_tokens: dict[str, int]) -> Frame:
        """Split the pieces of *family*; *added_tokens* are the ids of special tokens by text."""
        parts = [part for piece in family.pieces for part in _split(piece, added_tokens)]
        asks = next(i for i, part in enumerate(parts) if QUERY in part.text)
        shows = next(i for i, part in enumerate(parts) if DOCUMENT in part.text)
        stem, trail = parts[shows].text.split(DOCUMENT)
        together = asks == shows
        # Blanks before a word are part of its token.
        cut = len(stem.rstrip()) if together else 0
        return cls(
            before=tuple(parts[:asks]),
            query=stem[:cut] if together else parts[asks].text,
            between=tuple(parts[asks + 1 : shows]),
            together=together,
            lead=stem[cut:],
            trail=trail,
            after=tuple(parts[shows + 1 :]),
        )

    @property
    def stem(self) -> str:
        """What stands between a query and its document in one string, blanks left out."""
        return self.query.rpartition(QUERY)[2] if self.together else ""


def _split(piece: str, added_tokens: dict[str, int]) -> list[Part]:
    if not added_tokens:
        return [Part(piece)]
    longest_first = sorted(added_tokens, key=len, reverse=True)
    texts = re.split(f"({'|'.join(map(re.escape, longest_first))})", piece)
    return [Part(text, added_tokens.get(text)) for text in texts if text]


class _Document(NamedTuple):
    """A document's tokens after those of a query that it shares: ``shared`` of them."""

    tokens: Tokens
    """Without the trail."""

    whole: NDArray[np.int32]
    """With the trail, as the reference tokenises them in one."""

    shared: int


@dataclass(slots=True)
class _Asked:
    """A query with its instruction, tokenised; each field holds ids but for the two texts."""

    before: NDArray[np.int32]
    query: NDArray[np.int32]
    between: NDArray[np.int32]
    trail: NDArray[np.int32]
    after: NDArray[np.int32]
    text: str
    told: str
    prefixes: dict[int, Prefix] = field(default_factory=dict)

    def prefix(self, kept: int) -> Prefix:
        """Return what a prompt begins with, *kept* tokens of its query included."""
        if kept not in self.prefixes:
            ids = np.concatenate([self.before, self.query[:kept], self.between])
            key = blake2b(ids.tobytes(), digest_size=16).digest()
            self.prefixes[kept] = Prefix(ids, key)
        return self.prefixes[kept]


class PromptEncoder:
    """Encodes pairs as the prompts of a family.

    What is beyond *max_length* is cut off the document, and off the query where it alone is too
    long or takes more than its family's share; what comes after the document is never cut.

    Raises:
        ValueError: *max_length* leaves no room for the texts, or the tokenizer does not know the
            family's answers.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        family: Family,
        *,
        max_length: int,
        truncation: Truncation = Truncation.AUTO,
        special_tokens: SpecialTokens = SpecialTokens.PLAIN,
    ) -> None:
        self.family = family
        self.max_length = max_length
        self._truncation = truncation
        self._tokenizer = TextTokenizer(tokenizer, special_tokens)
        self._frame = Frame.of(family, self._tokenizer.added_tokens)
        self._parts_at_seam = _parts_at_seam(tokenizer, self._frame)
        self._stem = self._ids(self._frame.stem)
        self._documents = TokenCache(TOKEN_CACHE_BYTES)
        fixed = self._ask("", None)
        taken = sum(map(len, (fixed.before, fixed.query, fixed.between, fixed.trail, fixed.after)))
        if max_length < taken + LEAST_ROOM:
            raise ValueError(
                f"max_length {max_length} has no room for texts beside the {taken} tokens of the "
                f"family {family.name!r}"
            )
        self.answers = tuple(self._answer(text) for text in (family.yes, family.no) if text)
        """Ids of the tokens yes and, where there is one, no."""

    @property
    def identity(self) -> str:
        """What changes the ids of a pair, for a scorer's own identity."""
        row = blake2b(repr(self.family).encode(), digest_size=4).hexdigest()
        return (
            f"family {self.family.name} {row}, {self._truncation} at {self.max_length}"
            f"{self._tokenizer.identity}"
        )

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, or None where there is no such."""
        return self._tokenizer.token_to_id(token)

    def encode(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> list[TokenPair]:
        """Encode one query with each document, in order; *instruction* None is the family's own."""
        if not documents:
            return []
        asked = self._ask(query, instruction)
        lead = fill(self._frame.lead, instruction=asked.told)
        trail = fill(self._frame.trail, instruction=asked.told)
        texts = [lead + document for document in documents]
        known = self._tokens(texts)
        wholes = self._tokens([text + trail for text in texts]) if trail else known
        return [
            self._pair(
                asked,
                _Document(tokens, whole.ids, len(asked.query))
                if tokens is not None and whole is not None
                else self._joined(asked, text, trail),
            )
            for text, tokens, whole in zip(texts, known, wholes, strict=True)
        ]

    def _ask(self, query: str, instruction: str | None) -> _Asked:
        frame, told = self._frame, self.family.told(instruction)
        text = fill(frame.query, query=query, instruction=told)
        return _Asked(
            before=self._fixed(frame.before, told),
            query=_array(self._ids(text)),
            between=self._fixed(frame.between, told),
            trail=_array(self._ids(fill(frame.trail, instruction=told))),
            after=self._fixed(frame.after, told),
            text=text,
            told=told,
        )

    def _fixed(self, parts: Sequence[Part], told: str) -> NDArray[np.int32]:
        """Return the ids of parts that hold neither query nor document."""
        ids: list[int] = []
        for text, token_id in parts:
            filled = fill(text, instruction=told)
            ids += self._ids(filled) if token_id is None else [token_id]
        return _array(ids)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.ids(self._tokenizer.encode([text])[0]) if text else []

    def _answer(self, text: str) -> int:
        ids = self._ids(text)
        if len(ids) != 1:
            raise ValueError(
                f"the answer {text!r} of the family {self.family.name!r} is {len(ids)} tokens of "
                "its vocabulary, and must be one"
            )
        return ids[0]

    def _tokens(self, texts: Sequence[str]) -> list[Tokens | None]:
        """Tokenise documents by themselves; None where a token crosses a document's beginning."""
        if self._frame.together and not self._parts_at_seam:
            return [None] * len(texts)
        known = self._documents.look_up(texts)
        new = [i for i, tokens in enumerate(known) if tokens is None]
        heads = [self._frame.stem + texts[i][:SEAM_CHARACTERS] for i in new]
        encoded = self._tokenizer.encode([*(texts[i] for i in new), *heads])
        for i, whole, head in zip(new, encoded, encoded[len(new) :], strict=False):
            if self._tokenizer.ids(head)[: len(self._stem)] == self._stem:
                ids = self._tokenizer.ids(whole)
                # What is kept of it is what a pair may hold.
                tokens = Tokens(_array(ids[: self.max_length]), len(ids))
                self._documents.keep(texts[i], tokens)
                known[i] = tokens
        return known

    def _joined(self, asked: _Asked, text: str, trail: str) -> _Document:
        """Tokenise query and document as one string; they share what its beginning shares."""
        ids = self._ids(asked.text + text)
        whole = self._ids(asked.text + text + trail) if trail else ids
        pairs = zip(asked.query.tolist(), ids, whole, strict=False)
        shared = sum(1 for _ in takewhile(lambda three: three[0] == three[1] == three[2], pairs))
        tokens = Tokens(_array(ids[shared:]), len(ids) - shared)
        return _Document(tokens, _array(whole[shared:]), shared)

    def _pair(self, asked: _Asked, document: _Document) -> TokenPair:
        fixed = sum(map(len, (asked.before, asked.between, asked.trail, asked.after)))
        # A trail that is joined to its document may take fewer tokens, or more.
        length = max(document.tokens.length, len(document.whole) - len(asked.trail))
        query, kept = self._kept(asked, document.shared, length, self.max_length - fixed)
        parts = (
            [document.whole, asked.after]
            if kept == length
            else [document.tokens.ids[:kept], asked.trail, asked.after]
        )
        return TokenPair(
            ids=np.concatenate(parts),
            segments=None,
            truncated=kept < length,
            prefix=asked.prefix(query),
        )

    def _kept(self, asked: _Asked, query: int, document: int, room: int) -> tuple[int, int]:
        """Return how many tokens of query and document stay."""
        room = max(0, room)
        if self._truncation is Truncation.LONGEST_FIRST:
            return cut_longest_first(query, document, room)
        share = self.family.query_share
        if self._truncation is Truncation.ONLY_SECOND and share == 1:
            share = OTHER_SHARE
        counted = room + len(asked.between)
        if self.family.share_counts_before:
            counted += len(asked.before)
        query = min(query, int(counted * share), room)
        return query, min(document, room - query)


def _array(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


def _parts_at_seam(tokenizer: Tokenizer, frame: Frame) -> bool:
    """Whether *tokenizer* parts text where a document begins, before it looks for tokens.

    One that does not, as those of SentencePiece, may join anything to anything.
    """
    stem = frame.stem
    if not frame.together or not stem or INSTRUCTION in stem or tokenizer.pre_tokenizer is None:
        return not frame.together
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    place = len(normalize(stem))
    return all(
        any(
            start == place
            for _, (start, _) in tokenizer.pre_tokenizer.pre_tokenize_str(
                normalize(stem + frame.lead + probe)
            )
        )
        for probe in SEAM_PROBES
    )
