"""Texts to token ids with or without the special tokens that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_plugins.config import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        self._added = tokenizer.get_added_tokens_decoder()
        plain = special_tokens is SpecialTokens.PLAIN
        if plain:
            _mark_special(tokenizer)
        tokenizer.encode_special_tokens = plain
        self._spelling = _spell_special_tokens(tokenizer) if plain else {}
        self.identity = "" if plain else ", special tokens parsed"
        """What of it changes ids."""

    @property
    def added_tokens(self) -> dict[str, int]:
        """Ids of the tokens that were added to the vocabulary, by their text."""
        return {token.content: token_id for token_id, token in self._added.items()}

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, or None where there is no such."""
        return self._tokenizer.token_to_id(token)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenise each text by itself, without the tokens that the tokenizer puts around one."""
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def ids(self, encoded: Encoding) -> list[int]:
        """Return the ids of an encoded text, special tokens spelled out where they are plain."""
        ids = encoded.ids
        if self._spelling and not self._spelling.keys().isdisjoint(ids):
            return [plain for token in ids for plain in self._spelling.get(token, (token,))]
        return ids


def _mark_special(tokenizer: Tokenizer) -> None:
    """Mark as special what is markup by its nature: ``<think>`` of Qwen3 is not marked so."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    markup = [
        token
        for token in tokenizer.get_added_tokens_decoder().values()
        if not token.special and token.content.strip() and token.content not in vocabulary
    ]
    if markup:
        tokenizer.add_special_tokens(markup)


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
