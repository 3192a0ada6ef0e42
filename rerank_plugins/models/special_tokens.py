"""Texts to token ids with or without the special tokens that they name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from rerank_plugins.options import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer


MARKUP: Final = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)
"""How markup looks: Qwen3 does not mark ``<think>`` and ``<tool_call>`` as special."""


class TextTokenizer:
    """Tokenises texts of strangers; what it does with special tokens is settled when it is made.

    The tokenizer's state is set here and never touched again, which makes `encode` safe in many
    threads at once. With ``plain`` special tokens, the text of one inside a query or document
    ("[SEP]", "</s>", "<think>") is spelled out as plain text. What looks like markup counts as
    special whatever its own mark says, unless the vocabulary itself holds it; words and blanks that
    were added to a vocabulary do not.
    """

    def __init__(self, tokenizer: Tokenizer, special_tokens: SpecialTokens) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.markup = _markup(tokenizer)
        """Ids of the special tokens, by their text."""
        self.before_a_text = _before_a_text(tokenizer)
        """Ids that the tokenizer itself puts before a text."""
        plain = special_tokens is SpecialTokens.PLAIN
        if plain and self.markup:
            tokenizer.add_special_tokens(list(self.markup))
        tokenizer.encode_special_tokens = plain
        self._spelling = _spell_special_tokens(tokenizer) if plain else {}
        self.identity = "" if plain else ", special tokens parsed"
        """What of it changes ids."""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, or None where there is no such."""
        return self._tokenizer.token_to_id(token)

    def encode(self, texts: Sequence[str], *, offsets: bool = False) -> list[Encoding]:
        """Tokenise each text by itself, without the tokens that the tokenizer puts around one.

        Only with *offsets* do the tokens know their characters, which takes longer.
        """
        batch = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        return batch(list(texts), add_special_tokens=False)

    def ids_of(self, text: str) -> list[int]:
        """Return the ids of one text by itself."""
        return self.ids(self.encode([text])[0]) if text else []

    def parts(self, before: str, after: str) -> bool:
        """Whether text is parted where *before* ends and *after* begins, whatever tokens it has."""
        if self._tokenizer.pre_tokenizer is None:
            return False
        normalize = self._tokenizer.normalizer.normalize_str if self._tokenizer.normalizer else str
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(normalize(before + after))
        place = len(normalize(before))
        return any(start == place for _, (start, _) in words)

    def ids(self, encoded: Encoding) -> list[int]:
        """Return the ids of an encoded text, special tokens spelled out where they are plain."""
        return self.read(encoded)[0]

    def read(
        self, encoded: Encoding, *, offsets: bool = False
    ) -> tuple[list[int], NDArray[np.int32] | None]:
        """Return the ids of an encoded text, and (tokens, 2) where each begins and ends in it."""
        ids = encoded.ids
        spans = np.array(encoded.offsets, np.int32).reshape(-1, 2) if offsets else None
        if self._spelling and not self._spelling.keys().isdisjoint(ids):
            spelled = [self._spelling.get(token, (token,)) for token in ids]
            ids = [plain for tokens in spelled for plain in tokens]
            if spans is not None:
                spans = np.repeat(spans, [len(tokens) for tokens in spelled], axis=0)
        return ids, spans


def _markup(tokenizer: Tokenizer) -> dict[str, int]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return {
        token.content: token_id
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special or (MARKUP.fullmatch(token.content) and token.content not in vocabulary)
    }


def _before_a_text(tokenizer: Tokenizer) -> list[int]:
    encoded = tokenizer.encode("a")
    own = encoded.special_tokens_mask
    return encoded.ids[: own.index(0)] if 0 in own else []


def parsed_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of *text*, special tokens parsed; before a `TextTokenizer` takes over."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = False
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


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
