"""A family's prompt in parts: special tokens, and the texts around its places."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from rerank_plugins.models.families import DOCUMENT, INSTRUCTION, QUERY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.models.special_tokens import TextTokenizer

SEAM_PROBES: Final = ("a", "A1", "1", "\n", "  ", ".", "(", "'s", "中", "é", "\u0301", "\U0001f600")
"""Beginnings of documents that a tokenizer is tried on."""


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
    def of(cls, pieces: Sequence[str], markup: dict[str, int]) -> Frame:
        """Split the *pieces* of a prompt; *markup* are the ids of special tokens by text."""
        parts = [part for piece in pieces for part in _split(piece, markup)]
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


def _split(piece: str, markup: dict[str, int]) -> list[Part]:
    if not markup:
        return [Part(piece)]
    longest_first = sorted(markup, key=len, reverse=True)
    texts = re.split(f"({'|'.join(map(re.escape, longest_first))})", piece)
    return [Part(text, markup.get(text)) for text in texts if text]


class Form:
    """A prompt with an instruction, or without one, and how its tokenizer takes it."""

    def __init__(self, tokenizer: TextTokenizer, pieces: Sequence[str], *, bos: bool) -> None:
        self.frame = Frame.of(pieces, tokenizer.markup)
        self.bos = tokenizer.before_a_text if bos else []
        self.parts_at_seam = _parts_at_seam(tokenizer, self.frame)
        self.stem = tokenizer.ids_of(self.frame.stem)


def _parts_at_seam(tokenizer: TextTokenizer, frame: Frame) -> bool:
    """Whether *tokenizer* parts text where a document begins, before it looks for tokens.

    One that does not, as those of SentencePiece, may join anything to anything.
    """
    stem = frame.stem
    if not frame.together:
        return True
    if not stem or INSTRUCTION in stem:
        return False
    return all(tokenizer.parts(stem, frame.lead + probe) for probe in SEAM_PROBES)
