"""How much a term says: weights learnt once from background text, and a guess for the rest."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final, Self

from rerank_plugins.text.terms import split_terms

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

DATA_PACKAGE: Final = "rerank_plugins.models.lexical_data"
WEIGHTS_FILE: Final = "term_weights.txt.gz"
FUNCTION_WORDS_FILE: Final = "function_words.txt"

STEPS_PER_UNIT: Final = 8
"""The data file holds weights in whole eighths."""

UNSEEN_WEIGHT: Final = 9.0
COMMON_WEIGHT: Final = 3.0
"""A word in every twentieth document: such words tell that a text is in a covered language."""

FUNCTION_WORD_WEIGHT: Final = 0.5
GUESSED_PAIR_WEIGHT: Final = 7.0
FUNCTION_PAIR_WEIGHT: Final = 1.0
"""For pairs of characters."""

# Mean weight of a query word by its length in characters, from English and Swahili.
_WEIGHT_BY_LENGTH: Final = (1.2, 1.2, 1.8, 2.8, 3.8, 4.4, 4.9, 5.4, 5.6, 6.0, 6.4, 6.8, 7.4)
_UNWRITTEN_VOWELS: Final = 2
"""Hebrew and Arabic words are about so much shorter than their sound."""


@dataclass(frozen=True, slots=True)
class TermWeights:
    """Weights of terms: about ``-ln`` of the share of documents that hold the term."""

    background: Mapping[str, float]
    common_words: frozenset[str]
    function_words: frozenset[str]

    @classmethod
    def load(cls) -> Self:
        """Read the packaged data. Loaded once; every caller shares the tables."""
        background, common_words, function_words = _packaged_tables()
        return cls(background, common_words, function_words)

    def weight(self, term: str) -> float:
        """Weigh a term of a text whose language the background covers.

        A term never seen weighs most, unless no language of its script is covered: then it is
        guessed.
        """
        if is_latin(term) or _is_universal(term):
            return self.background.get(term, UNSEEN_WEIGHT)
        return self.guess(term)

    def guess(self, term: str) -> float:
        """Weigh a term without background: short words and known function words say little."""
        if _is_universal(term):
            return self.background.get(term, UNSEEN_WEIGHT)
        if is_guessed_pair(term):
            if len(term) == 1 or term in self.function_words:
                return FUNCTION_PAIR_WEIGHT
            return GUESSED_PAIR_WEIGHT
        if term in self.function_words:
            return FUNCTION_WORD_WEIGHT
        length = len(term)
        if "\u0590" <= term[:1] < "\u0780":
            length += _UNWRITTEN_VOWELS
        return _WEIGHT_BY_LENGTH[min(length, len(_WEIGHT_BY_LENGTH) - 1)]


def is_latin(term: str) -> bool:
    """Tell whether a term is a word in Latin letters, by its first character."""
    first = term[:1]
    return "a" <= first < "\u0250" or "\u1e00" <= first < "\u1f00"


def read_weights(packed: bytes) -> dict[str, float]:
    """Unpack a data file: lines of ``steps<TAB>term term term``, gzip-compressed."""
    weights: dict[str, float] = {}
    for line in gzip.decompress(packed).decode("utf-8").splitlines():
        steps, _, terms = line.partition("\t")
        weights.update(dict.fromkeys(terms.split(" "), int(steps) / STEPS_PER_UNIT))
    return weights


def read_function_words(text: str) -> frozenset[str]:
    """Read lines of ``language<TAB>word word word`` into the terms of all languages together."""
    return frozenset(
        term for line in text.splitlines() for term in split_terms(line.partition("\t")[2])
    )


def common_latin_words(background: Mapping[str, float]) -> frozenset[str]:
    """Pick the words that any longer text in a covered language with Latin letters holds."""
    return frozenset(
        term for term, weight in background.items() if weight < COMMON_WEIGHT and is_latin(term)
    )


def is_paired(term: str) -> bool:
    """Tell whether a term is of a script that is cut into pairs of characters."""
    return is_covered_pair(term) or is_guessed_pair(term)


def _is_universal(term: str) -> bool:
    """Tell whether the background weighs a term rightly beside text of any language."""
    return term.isdecimal() or is_covered_pair(term)


def is_covered_pair(term: str) -> bool:
    """Chinese, Japanese, Korean."""
    first = term[:1]
    return "\u1100" <= first < "\u1200" or "\u3005" <= first < "\ua000" or first >= "\uac00"


def is_guessed_pair(term: str) -> bool:
    """Thai and Lao, Burmese, Khmer."""
    first = term[:1]
    return (
        "\u0e00" <= first < "\u0f00"
        or "\u1000" <= first < "\u10a0"
        or "\u1780" <= first < "\u1800"
        or "\ua9e0" <= first < "\uaa80"
    )


@cache
def _packaged_tables() -> tuple[Mapping[str, float], frozenset[str], frozenset[str]]:
    folder: Traversable = resources.files(DATA_PACKAGE)
    background = read_weights(folder.joinpath(WEIGHTS_FILE).read_bytes())
    function_words = read_function_words(
        folder.joinpath(FUNCTION_WORDS_FILE).read_text(encoding="utf-8")
    )
    return background, common_latin_words(background), function_words
