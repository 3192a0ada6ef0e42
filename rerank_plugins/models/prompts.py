"""Pairs as prompts for a language model: the query's part once, each document, cut and joined.

Ids equal those that the family's reference gets from its strings. Where it tokenises query and
document as one string, they are tokenised apart only as far as the string's tokens part there too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rerank_plugins.errors import InputError
from rerank_plugins.models.encoding import (
    LEAST_ROOM,
    TOKEN_CACHE_BYTES,
    Prefix,
    TokenPair,
    cut_longest_first,
)
from rerank_plugins.models.families import INSTRUCTION, fill
from rerank_plugins.models.frames import Form, Frame, Part
from rerank_plugins.models.special_tokens import TextTokenizer, parsed_ids
from rerank_plugins.models.token_cache import TokenCache, Tokens
from rerank_plugins.models.windows import WindowedPair, in_windows
from rerank_plugins.options import SpecialTokens, Truncation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

    from rerank_plugins.models.families import Family
    from rerank_plugins.models.windows import WindowRule

SEAM_CHARACTERS: Final = 64
"""How much of a document is looked at to see whether a token crosses its beginning."""

SAMPLE: Final = {"query": "a", "document": "b", "instruction": "c"}
"""Texts that a tokenizer is tried with."""

OTHER_SHARE: Final = 0.75
"""The most that a query takes of the room with ``only_second`` where its family knows no bound."""


class _Document(NamedTuple):
    """A document's tokens after those of a query that it shares: ``shared`` of them."""

    tokens: Tokens
    """Without the trail."""

    whole: NDArray[np.int32]
    """With the trail, as the reference tokenises them in one."""

    shared: int


@dataclass(slots=True)
class _Asked:
    """A query with its instruction, tokenised; what is no text holds ids.

    ``stem`` are those at the end of ``query`` that stay where the query is cut.
    """

    before: NDArray[np.int32]
    query: NDArray[np.int32]
    stem: NDArray[np.int32]
    between: NDArray[np.int32]
    trail: NDArray[np.int32]
    after: NDArray[np.int32]
    text: str
    prefixes: dict[int, Prefix] = field(default_factory=dict)

    @property
    def fixed(self) -> int:
        """Tokens beside those of query and document."""
        parts = (self.before, self.stem, self.between, self.trail, self.after)
        return sum(map(len, parts))

    def prefix(self, kept: int) -> Prefix:
        """Return what a prompt begins with, *kept* tokens of its query and the stem included."""
        if kept not in self.prefixes:
            ids = np.concatenate([self.before, self.query[:kept], self.stem, self.between])
            key = blake2b(ids.tobytes(), digest_size=16).digest()
            self.prefixes[kept] = Prefix(ids, key)
        return self.prefixes[kept]


class NoRoomError(ValueError):
    """A prompt takes all the tokens that it may have, and leaves none for its texts."""


class PromptEncoder:
    """Encodes pairs as the prompts of a family.

    What is beyond *max_length* is cut off the document, and off the query where it alone is too
    long or takes more than its family's share; what comes after the document is never cut.

    Raises:
        NoRoomError: *max_length* leaves no room for the texts.
        ValueError: the tokenizer does not know the family's answers, or takes a prompt in one piece
            otherwise than around its special tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        family: Family,
        *,
        max_length: int,
        truncation: Truncation = Truncation.AUTO,
        special_tokens: SpecialTokens = SpecialTokens.PLAIN,
        windows: WindowRule | None = None,
    ) -> None:
        self.family = family
        self.max_length = max_length
        self._truncation = truncation
        self._windows = windows
        forms = family.pieces_for(None), family.pieces_for(INSTRUCTION)
        whole = [[parsed_ids(tokenizer, fill(p, **SAMPLE)) for p in pieces] for pieces in forms]
        self._tokenizer = TextTokenizer(tokenizer, special_tokens)
        self._own, self._told = (Form(self._tokenizer, f, bos=family.bos) for f in forms)
        self._documents = TokenCache(TOKEN_CACHE_BYTES)
        taken = self._ask("", None)
        if max_length < taken.fixed + len(taken.query) + LEAST_ROOM:
            raise NoRoomError(
                f"max_length {max_length} has no room for texts beside the "
                f"{taken.fixed + len(taken.query)} tokens of the family {family.name!r}"
            )
        for told, ids in zip((None, SAMPLE["instruction"]), whole, strict=True):
            self._check(told, [token for piece in ids for token in piece])
        self.answers = tuple(
            self._answer(answer) for answer in (family.yes, family.no) if answer is not None
        )
        """Ids of the tokens yes and, where there is one, no."""
        if len(set(self.answers)) < len(self.answers):
            raise ValueError(
                f"the answers {family.yes!r} and {family.no!r} of the family {family.name!r} are "
                "one token of its vocabulary"
            )

    @property
    def identity(self) -> str:
        """What changes the ids of a pair, for a scorer's own identity."""
        row = blake2b(repr(self.family).encode(), digest_size=4).hexdigest()
        windows = f", {self._windows}" if self._windows is not None else ""
        return (
            f"family {self.family.name} {row}, {self._truncation} at {self.max_length}{windows}"
            f"{self._tokenizer.identity}"
        )

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, or None where there is no such."""
        return self._tokenizer.token_to_id(token)

    def encode(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> list[TokenPair | WindowedPair[TokenPair]]:
        """Encode one query with each document, in order; *instruction* None is the family's own."""
        if not documents:
            return []
        told = instruction or ""
        form = self._own if instruction is None else self._told
        asked = self._ask(query, instruction)
        lead = fill(form.frame.lead, instruction=told)
        trail = fill(form.frame.trail, instruction=told)
        texts = [lead + document for document in documents]
        known = self._tokens(form, texts, len(lead))
        wholes = known
        if trail:
            wholes = self._tokens(form, [text + trail for text in texts], len(lead))
        return [
            self._pair(
                asked,
                _Document(tokens, whole.ids, len(asked.query) + len(asked.stem))
                if tokens is not None and whole is not None
                else self._joined(asked, text, trail, len(lead)),
            )
            for text, tokens, whole in zip(texts, known, wholes, strict=True)
        ]

    def _ask(self, query: str, instruction: str | None) -> _Asked:
        told = instruction or ""
        form = self._own if instruction is None else self._told
        frame = form.frame
        text = fill(frame.query, query=query, instruction=told)
        ids = self._tokenizer.ids_of(text)
        keeps_stem = self.family.query_share < 1 or self._truncation is not Truncation.AUTO
        stem = form.stem if keeps_stem or self._windows is not None else []
        if stem and ids[-len(stem) :] != stem:
            stem = []
        asked = _Asked(
            before=_array([*form.bos, *self._fixed(frame.before, told)]),
            query=_array(ids[: len(ids) - len(stem)]),
            stem=_array(stem),
            between=_array(self._fixed(frame.between, told)),
            trail=_array(self._tokenizer.ids_of(fill(frame.trail, instruction=told))),
            after=_array(self._fixed(frame.after, told)),
            text=text,
        )
        if instruction is not None:
            self._check_room(asked, frame, instruction)
        return asked

    def _check_room(self, asked: _Asked, frame: Frame, instruction: str) -> None:
        beside = fill(frame.query, query="", instruction=instruction)
        taken = asked.fixed + len(self._tokenizer.ids_of(beside))
        if self.max_length < taken + LEAST_ROOM:
            raise InputError(
                f"the instruction makes the prompt {taken} tokens long beside its texts, and "
                f"max_length is {self.max_length}; shorten it, or set a larger max_length"
            )

    def _check(self, told: str | None, whole: Sequence[int]) -> None:
        """See that special tokens part texts as they do in a whole string.

        Raises:
            ValueError: the tokenizer takes blanks beside them away, or puts some there.
        """
        (pair,) = self.encode(SAMPLE["query"], [SAMPLE["document"]], instruction=told)
        if isinstance(pair, TokenPair) and not pair.truncated:
            form = self._own if told is None else self._told
            if pair.all_ids.tolist() != [*form.bos, *whole]:
                raise ValueError(
                    "it puts blanks beside special tokens, or takes them away, so that the prompt "
                    "cannot be put together of its parts; name a family without special tokens "
                    "inside a piece"
                )

    def _fixed(self, parts: Sequence[Part], told: str) -> list[int]:
        """Return the ids of parts that hold neither query nor document."""
        ids: list[int] = []
        for text, token_id in parts:
            filled = fill(text, instruction=told)
            ids += self._tokenizer.ids_of(filled) if token_id is None else [token_id]
        return ids

    def _answer(self, answer: str | int) -> int:
        known = self._tokenizer.markup.get(str(answer), answer)
        ids = [known] if isinstance(known, int) else self._tokenizer.ids_of(known)
        if len(ids) != 1:
            raise ValueError(
                f"the answer {answer!r} of the family {self.family.name!r} is {len(ids)} tokens of "
                "its vocabulary, and must be one"
            )
        return ids[0]

    def _tokens(self, form: Form, texts: Sequence[str], lead: int) -> list[Tokens | None]:
        """Tokenise documents by themselves; None where a token crosses a document's beginning.

        Each text has *lead* characters before its document.
        """
        if form.frame.together and not form.parts_at_seam:
            return [None] * len(texts)
        known = self._documents.look_up(texts)
        new = [i for i, tokens in enumerate(known) if tokens is None]
        whole = [texts[i] for i in new]
        encoded = self._tokenizer.encode(whole, offsets=self._windows is not None)
        heads = self._tokenizer.encode([form.frame.stem + text[:SEAM_CHARACTERS] for text in whole])
        for i, text, head in zip(new, encoded, heads, strict=True):
            if self._tokenizer.ids(head)[: len(form.stem)] == form.stem:
                tokens = self._plain(text, lead)
                self._documents.keep(texts[i], tokens)
                known[i] = tokens
        return known

    def _joined(self, asked: _Asked, text: str, trail: str, lead: int) -> _Document:
        """Tokenise query and document as one string; they share what its beginning shares."""
        wanted = [asked.text + text, asked.text + text + trail]
        encoded = self._tokenizer.encode(wanted, offsets=self._windows is not None)
        ids, whole = map(self._tokenizer.ids, encoded)
        same = zip([*asked.query.tolist(), *asked.stem.tolist()], ids, whole, strict=False)
        shared = sum(1 for _ in takewhile(lambda three: three[0] == three[1] == three[2], same))
        tokens = self._plain(encoded[0], len(asked.text) + lead, shared)
        return _Document(tokens, _array(whole[shared:]), shared)

    def _plain(self, encoded: Encoding, lead: int, skipped: int = 0) -> Tokens:
        """Return a text's tokens after those *skipped*: as many as a pair may hold.

        Where windows need them, all, with their characters counted from after the *lead*.
        """
        ids, offsets = self._tokenizer.read(encoded, offsets=self._windows is not None)
        rest = _array(ids[skipped:])
        if offsets is None:
            # A copy: what is kept of a document must not keep the rest.
            return Tokens(rest[: self.max_length].copy(), len(rest))
        return Tokens(rest, len(rest), np.maximum(offsets[skipped:] - lead, 0))

    def _pair(self, asked: _Asked, document: _Document) -> TokenPair | WindowedPair[TokenPair]:
        # A trail that is joined to its document may take fewer tokens, or more.
        length = max(document.tokens.length, len(document.whole) - len(asked.trail))
        shared = document.shared
        if shared < len(asked.query) + len(asked.stem):
            # A token crosses the seam: what is left of the stem is cut with the query.
            query_ids = np.concatenate([asked.query, asked.stem])
            asked = replace(asked, query=query_ids, stem=_array([]), prefixes={})
        else:
            shared = len(asked.query)
        query, kept = self._kept(asked, shared, length)
        prefix = asked.prefix(query)

        def cut(ids: NDArray[np.int32], *, truncated: bool = False) -> TokenPair:
            return _pair_of(prefix, [ids, asked.trail, asked.after], truncated=truncated)

        if kept == length:
            return _pair_of(prefix, [document.whole, asked.after])
        # Beside a query that takes all the room there is no window, and nothing of the document.
        if self._windows is not None and kept:
            return in_windows(document.tokens, kept, self._windows, cut)
        return cut(document.tokens.ids[:kept], truncated=True)

    def _kept(self, asked: _Asked, query: int, document: int) -> tuple[int, int]:
        """Return how many tokens of query and document stay."""
        room = max(0, self.max_length - asked.fixed)
        if query + document <= room:
            return query, document
        if self._truncation is Truncation.LONGEST_FIRST:
            return cut_longest_first(query, document, room)
        share = self.family.query_share
        if self._truncation is Truncation.ONLY_SECOND or self._windows is not None:
            share = min(share, OTHER_SHARE)
        counted = room + len(asked.between)
        if self.family.share_counts_before:
            counted += len(asked.before)
        query = min(query, int(counted * share), room)
        return query, min(document, room - query)


def _pair_of(
    prefix: Prefix, parts: Sequence[NDArray[np.int32]], *, truncated: bool = False
) -> TokenPair:
    ids = np.concatenate(parts)
    # The last token is read, so it must be the pair's own.
    return (
        TokenPair(ids, None, truncated, prefix)
        if len(ids)
        else TokenPair(prefix.ids, None, truncated)
    )


def _array(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.array(ids, np.int32)
