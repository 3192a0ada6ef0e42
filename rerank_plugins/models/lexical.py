"""Score a document by the query terms it holds, from the pair alone.

BM25 with these changes: term weights and the typical length are constants of the package, never of
the documents at hand; query neighbours that stay neighbours earn extra; a word that begins like the
query word, for half the letters or more, counts as a part of a match; single Chinese, Japanese and
Korean characters earn a little beside their pairs. What a document earns is divided by what the
perfect document would earn, so a score lies between 0 and 1 for any query.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from rerank_plugins.models.term_weights import (
    TermWeights,
    is_covered_pair,
    is_guessed_pair,
    is_latin,
)

SATURATION: Final = 0.9
TYPICAL_TERMS: Final = 150
LENGTH_POWER: Final = 0.65
"""Saturation grows with ``(terms / TYPICAL_TERMS) ** LENGTH_POWER``: no average is needed."""

NEIGHBOUR_SHARE: Final = 0.4
NEIGHBOUR_SATURATION: Final = 0.5
"""Neighbours saturate sooner than terms: once is nearly enough."""

# For pairs of characters of unknown weight: to follow each other says as much as to occur, and a
# longer text holds more of them by chance.
GUESSED_NEIGHBOUR_SHARE: Final = 1.0
GUESSED_LENGTH_POWER: Final = 0.8

CHARACTER_SHARE: Final = 0.3
RELATED_SHARE: Final = 0.4
MIN_SHARED_LETTERS: Final = 4

# The words of a text that are common in a covered language, against those known as function words
# of another and a little doubt: a text is foreign below the first share, covered above the second.
FOREIGN_SHARE: Final = 0.3
COVERED_SHARE: Final = 0.6
DOUBT: Final = 0.05
MIN_WORDS_TO_TELL: Final = 8

# Fitted on held-out training queries against the first 20 documents of BM25, one of them relevant.
# Even a good document holds only some of a query's pairs of characters: they have the steeper
# slope, fitted on Chinese, Japanese and Korean.
LOGIT_OF_NO_MATCH: Final = -7.0
LOGIT_PER_WORD_SCORE: Final = 13.5
LOGIT_PER_PAIR_SCORE: Final = 19.8


@dataclass(frozen=True, slots=True)
class LatinWords:
    """What the words in Latin letters tell about the language of a text."""

    words: int
    common: int
    """Words that are common in a language of the background."""
    foreign: int
    """Function words of another language."""


@dataclass(frozen=True, slots=True)
class LexicalQuery:
    """A query made ready to meet many documents."""

    terms: tuple[str, ...]
    occurrences: tuple[int, ...]
    neighbours: tuple[tuple[int, int], ...]
    """Terms that follow each other in the query, by their positions in ``terms``."""
    characters: Mapping[str, float]
    """The single characters of covered pairs, and their weights."""
    covered_weights: tuple[float, ...]
    guessed_weights: tuple[float, ...]
    paired_share: float
    """Share of the weight that lies in covered pairs, from 0 to 1; 0 without terms."""
    guessed: bool
    """Most terms are pairs of a script without background."""
    language: LatinWords


def prepare_query(terms: Sequence[str], weights: TermWeights) -> LexicalQuery:
    """Weigh the terms of a query once, for all its documents."""
    counts = Counter(terms)
    position = {term: index for index, term in enumerate(counts)}
    covered_weights = tuple(weights.weight(term) for term in counts)
    paired = sum(
        weight
        for term, weight in zip(counts, covered_weights, strict=True)
        if is_covered_pair(term)
    )
    return LexicalQuery(
        terms=tuple(counts),
        occurrences=tuple(counts.values()),
        neighbours=tuple(
            (position[first], position[second]) for first, second in dict.fromkeys(pairwise(terms))
        ),
        characters={
            character: weights.weight(character)
            for term in counts
            if is_covered_pair(term)
            for character in term
        },
        covered_weights=covered_weights,
        guessed_weights=tuple(weights.guess(term) for term in counts),
        paired_share=paired / sum(covered_weights) if counts else 0.0,
        guessed=2 * sum(map(is_guessed_pair, counts)) > len(counts),
        language=_look_at_latin_words(counts, weights),
    )


def score_terms(query: LexicalQuery, document_terms: Sequence[str], weights: TermWeights) -> float:
    """Score a document between 0 and 1; a document or a query without terms scores 0."""
    if not query.terms or not document_terms:
        return 0.0
    counts = Counter(document_terms)
    covered = _share_of_covered_language(query, counts, weights)
    term_weights = [
        covered * known + (1.0 - covered) * guessed
        for known, guessed in zip(query.covered_weights, query.guessed_weights, strict=True)
    ]
    length_power = GUESSED_LENGTH_POWER if query.guessed else LENGTH_POWER
    neighbour_share = GUESSED_NEIGHBOUR_SHARE if query.guessed else NEIGHBOUR_SHARE
    half_point = SATURATION * (len(document_terms) / TYPICAL_TERMS) ** length_power
    characters = _count_characters(query.characters, counts)
    related = _count_related(query.terms, counts) | characters
    earned = possible = 0.0
    for term, times, weight in zip(query.terms, query.occurrences, term_weights, strict=True):
        possible += times * weight
        found = counts[term] + RELATED_SHARE * related.get(term, 0)
        earned += times * weight * found / (found + half_point)
    wanted = {
        (query.terms[first], query.terms[second]): neighbour_share
        * min(term_weights[first], term_weights[second])
        for first, second in query.neighbours
    }
    together = Counter(filter(wanted.__contains__, pairwise(document_terms)))
    for neighbours, weight in wanted.items():
        possible += weight
        found = together[neighbours]
        earned += weight * found / (found + NEIGHBOUR_SATURATION * half_point)
    for character, weight in query.characters.items():
        possible += CHARACTER_SHARE * weight
        found = characters[character]
        earned += CHARACTER_SHARE * weight * found / (found + half_point)
    return earned / possible


def to_logit(query: LexicalQuery, score: float) -> float:
    """Map a score to the log-odds of relevance, for a document that a first stage ranked high.

    Rising in the score, so the order of documents stays.
    """
    slope = LOGIT_PER_WORD_SCORE + query.paired_share * (
        LOGIT_PER_PAIR_SCORE - LOGIT_PER_WORD_SCORE
    )
    return LOGIT_OF_NO_MATCH + slope * score


def _share_of_covered_language(
    query: LexicalQuery, counts: Counter[str], weights: TermWeights
) -> float:
    """Tell, from 0 to 1, how far the Latin words are of a language in the background."""
    if query.covered_weights == query.guessed_weights:
        return 1.0
    document = _look_at_latin_words(counts, weights)
    words = query.language.words + document.words
    if words < MIN_WORDS_TO_TELL:
        return 1.0
    common = query.language.common + document.common
    foreign = query.language.foreign + document.foreign
    share = common / (common + foreign + DOUBT * words)
    return min(1.0, max(0.0, (share - FOREIGN_SHARE) / (COVERED_SHARE - FOREIGN_SHARE)))


def _look_at_latin_words(counts: Counter[str], weights: TermWeights) -> LatinWords:
    words = common = foreign = 0
    for term, times in counts.items():
        if is_latin(term):
            words += times
            if term in weights.common_words:
                common += times
            elif term in weights.function_words:
                foreign += times
    return LatinWords(words, common, foreign)


def _count_characters(wanted: Mapping[str, float], counts: Counter[str]) -> dict[str, float]:
    """Count the wanted characters of a document from its pairs; those at the edge of a run half."""
    found = dict.fromkeys(wanted, 0.0)
    if wanted:
        for term, times in counts.items():
            if len(term) == 1 and term in found:
                found[term] += times
            elif len(term) == 2:
                for character in term:
                    if character in found:
                        found[character] += times / 2
    return found


def _count_related(query_terms: Sequence[str], counts: Counter[str]) -> dict[str, float]:
    """Count, for each query word, the other words of the document that begin alike."""
    by_start: dict[str, list[str]] = {}
    for term in query_terms:
        if len(term) >= MIN_SHARED_LETTERS and not term.isdecimal():
            by_start.setdefault(term[:MIN_SHARED_LETTERS], []).append(term)
    related: dict[str, float] = {}
    if by_start:
        for word, times in counts.items():
            for term in by_start.get(word[:MIN_SHARED_LETTERS], ()):
                if word != term and _begin_alike(term, word):
                    related[term] = related.get(term, 0) + times
    return related


def _begin_alike(first: str, second: str) -> bool:
    shared = math.ceil(max(len(first), len(second)) / 2)
    return first[:shared] == second[:shared]
