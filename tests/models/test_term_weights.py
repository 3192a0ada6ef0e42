"""Term weights: the packaged data and the guesses beside it."""

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.models.term_weights import (
    FUNCTION_WORD_WEIGHT,
    UNSEEN_WEIGHT,
    TermWeights,
    read_weights,
)
from rerank_plugins.text.terms import split_terms
from training import term_weights as term_weights_training

MAX_DATA_BYTES = 1_000_000


WEIGHTS = TermWeights.load()


@pytest.fixture
def weights() -> TermWeights:
    return WEIGHTS


def test_loaded_tables_are_shared_and_frozen(weights: TermWeights) -> None:
    """A second load costs nothing, and nobody can replace a table."""
    assert TermWeights.load().background is weights.background
    with pytest.raises(dataclasses.FrozenInstanceError):
        weights.background = {}  # type: ignore[misc]  # the very thing a frozen class forbids


@given(st.text())
def test_every_term_has_a_positive_finite_weight(term: str) -> None:
    """Any text at all may be weighed."""
    for weight in (WEIGHTS.weight(term), WEIGHTS.guess(term)):
        assert 0.0 < weight <= UNSEEN_WEIGHT
        assert math.isfinite(weight)


@pytest.mark.parametrize(
    ("common", "rare"),
    [
        ("the", "photosynthesis"),
        ("ya", "chungwa"),
        ("什么", "量子"),
        ("什麼", "量子"),
        ("です", "量子"),
    ],
)
def test_common_terms_weigh_less_than_rare_ones(
    weights: TermWeights, common: str, rare: str
) -> None:
    """English, Swahili, both Chinese scripts and Japanese are in the background."""
    assert weights.weight(common) < weights.weight(rare)


def test_an_unseen_word_weighs_most_where_the_language_is_covered(weights: TermWeights) -> None:
    """In English, nothing says more than a word never met."""
    assert weights.weight("qzxwvk") == UNSEEN_WEIGHT


@pytest.mark.parametrize("word", ["que", "und", "который", "है", "της", "için", "là", "sunt", "في"])
def test_function_words_are_guessed_light(weights: TermWeights, word: str) -> None:
    """Languages without background text have their commonest words listed."""
    assert [weights.guess(term) for term in split_terms(word)] == [FUNCTION_WORD_WEIGHT]


def test_long_words_are_guessed_heavier(weights: TermWeights) -> None:
    """Without background text, the length of a word tells how rare it is."""
    assert weights.guess("дом") < weights.guess("электричество")


def test_a_script_without_background_is_guessed_at_once(weights: TermWeights) -> None:
    """A Cyrillic name in an English text says nothing about Russian: guess, do not look up."""
    assert weights.weight("москва") == weights.guess("москва")


def test_packaged_data_is_small() -> None:
    """The data stays below a megabyte."""
    package = importlib.import_module("rerank_plugins.models.lexical_data")
    assert package.__file__ is not None
    assert sum(p.stat().st_size for p in Path(package.__file__).parent.iterdir()) < MAX_DATA_BYTES


@given(st.dictionaries(st.text("abc的猫", min_size=1), st.integers(1, 72)))
def test_packed_weights_read_back(steps_by_term: dict[str, int]) -> None:
    """What the training script writes is what the package reads, byte for byte the same."""
    weights = {term: steps / 8 for term, steps in steps_by_term.items()}
    packed = term_weights_training.pack_weights(weights)
    assert read_weights(packed) == weights
    assert packed == term_weights_training.pack_weights(dict(reversed(weights.items())))


def test_a_term_weighs_by_the_texts_that_use_it_most() -> None:
    """A frequent word of one language, or of queries, is no rare word because others lack it."""
    english = term_weights_training.count_texts(["the cat", "the dog", "a dog"], 2)
    french = term_weights_training.count_texts(["le chat"] * 8 + ["the dog"] * 2, 2)
    learnt = term_weights_training.learn_weights([english, french])
    assert learnt["the"] == pytest.approx(-math.log(2 / 3))
    assert "cat" not in learnt
