"""Texts to token ids with or without the special tokens that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rerank_plugins.config import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer


class TextTokenizer:
    """Tokenises texts of strangers; what it does with special tokens is settled when it is made.

    The tokenizer's state is set here and never touched again, which makes `encode` safe in many
    threads at once. With ``plain`` special tokens, the text of one inside a query or document
    ("[SEP]", "</s>", "<think>") is spelled out as plain text. Added tokens that the vocabulary does
    not hold count as special whatever their own mark says: only markup is among them, but for runs
    of blanks.
    """

    def __init__(self, tokenizer: Tokenizer, special_tokens: SpecialTokens) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.markup = _markup(tokenizer)
        """Ids of the special tokens, by their text."""
        plain = special_tokens is SpecialTokens.PLAIN
        if plain and self.markup:
            # ``<think>`` of Qwen3 is not marked so.
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
        if token.special or (token.content.strip() and token.content not in vocabulary)
    }


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
