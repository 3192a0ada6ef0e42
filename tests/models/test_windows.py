"""Long documents in windows: which tokens, which characters, which logit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.config import RerankConfig
from rerank_plugins.models.encoding import PairEncoder, TokenPair
from rerank_plugins.models.token_cache import ENTRY_BYTES, TokenCache, Tokens
from rerank_plugins.models.windows import (
    WindowedPair,
    WindowRule,
    in_windows,
    single_pairs,
    window_slices,
    window_spans,
)
from rerank_plugins.options import Truncation, WindowScore
from rerank_plugins.results import Window
from tests.tiny_models import Kind, make_tokenizer

KINDS: tuple[Kind, ...] = ("bert", "xlm-roberta", "roberta")
RULE = WindowRule(overlap=3, score=WindowScore.MAX)
LONG = "the cat sat on a mat, the dog sat on the river bank and a tree. " * 3


def encoder(
    kind: Kind = "bert", windows: WindowRule | None = RULE, max_length: int = 24, **settings: Any
) -> PairEncoder:
    tokenizer = make_tokenizer(kind)
    return PairEncoder(tokenizer, max_length=max_length, windows=windows, **settings)


@given(st.integers(0, 3000), st.integers(1, 600), st.integers(0, 700))
def test_windows_cover_every_token_in_order_and_share_what_was_said(
    tokens: int, room: int, overlap: int
) -> None:
    slices = window_slices(tokens, room, overlap)

    shared = min(overlap, room // 2)
    assert slices[0][0] == 0
    assert slices[-1][1] == tokens
    assert all(stop - start == min(room, tokens) for start, stop in slices)
    overlaps = [before[1] - after[0] for before, after in pairwise(slices)]
    assert all(found == shared for found in overlaps[:-1])
    assert all(shared <= found < room for found in overlaps[-1:])


def test_a_document_that_fits_is_one_window() -> None:
    assert window_slices(10, 10, 4) == [(0, 10)]
    assert window_slices(11, 10, 4) == [(0, 10), (1, 11)]


def test_a_window_of_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="room for a token"):
        window_slices(5, 0, 0)


def test_spans_are_the_characters_from_the_first_token_to_the_last() -> None:
    offsets = np.array([(0, 3), (4, 7), (7, 8), (9, 12)], np.int32)

    assert window_spans([(0, 2), (1, 4)], offsets) == ((0, 7), (4, 12))


def test_a_mean_is_of_all_windows_and_names_the_best() -> None:
    spans = ((0, 4), (3, 7), (6, 9))
    three = (TokenPair(np.zeros(1, np.int32), None, truncated=False),) * 3

    highest = WindowedPair(three, spans, WindowScore.MAX)
    mean = WindowedPair(three, spans, WindowScore.MEAN)

    assert highest.combine([0.5, 2.0, -1.0])[0] == 2.0
    assert mean.combine([0.5, 2.0, -1.0]) == (0.5, Window(1, 3, 3, 7))
    assert highest.combine([2.0, 2.0, 0.0])[1].index == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncation", [Truncation.LONGEST_FIRST, Truncation.ONLY_SECOND])
def test_windows_are_pairs_of_the_query_and_consecutive_tokens(
    kind: Kind, truncation: Truncation
) -> None:
    tokenizer = make_tokenizer(kind)
    query = tokenizer.encode("the cat", add_special_tokens=False).ids
    document = tokenizer.encode(LONG, add_special_tokens=False).ids
    rules = encoder(kind, truncation=truncation)
    room = 24 - rules.template.length - len(query)

    (found,) = rules.encode("the cat", [LONG])

    assert isinstance(found, WindowedPair)
    assert not found.truncated
    slices = window_slices(len(document), room, 3)
    assert len(found.windows) == len(slices) > 3
    for pair, (start, stop) in zip(found.windows, slices, strict=True):
        ids, segments = rules.template.join(
            np.array(query, np.int32), np.array(document[start:stop], np.int32)
        )
        np.testing.assert_array_equal(pair.ids, ids)
        np.testing.assert_array_equal(pair.segments, segments)
        assert pair.tokens == 24
    assert found.tokens == 24 * len(slices)


@pytest.mark.parametrize("cut_left", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_that_fits_is_the_pair_that_truncation_gives(kind: Kind, cut_left: bool) -> None:
    documents = ["the dog sat", "", "[SEP] a </s>", "cat " * 7]
    for query in ("the cat", "the cat on a tree " * 10):
        windowed = encoder(kind, cut_left=cut_left, max_length=40).encode(query, documents)
        cut = encoder(kind, None, cut_left=cut_left, max_length=40).encode(query, documents)
        for one, other in zip(windowed, cut, strict=True):
            if isinstance(one, WindowedPair):
                assert other.truncated
                continue
            assert isinstance(other, TokenPair)
            np.testing.assert_array_equal(one.ids, other.ids)
            assert not one.truncated
            assert not other.truncated


@pytest.mark.parametrize("cut_left", [False, True])
def test_a_long_query_is_cut_in_every_window_as_truncation_cuts_it(cut_left: bool) -> None:
    query = "cat dog tree " * 20
    (cut,) = encoder(windows=None, cut_left=cut_left).encode(query, [LONG])
    (found,) = encoder(cut_left=cut_left).encode(query, [LONG])

    assert isinstance(found, WindowedPair)
    sides = 1 + (24 - 3) // 2  # [CLS] and the query
    for pair in found.windows:
        assert pair.ids[:sides].tolist() == single(cut).ids[:sides].tolist()
    whole = single(cut).ids.tolist()
    assert whole in [pair.ids.tolist() for pair in found.windows]
    # What is kept of a document cut from the left is its end.
    assert (found.windows[-1].ids.tolist() == whole) == cut_left


def single(pair: TokenPair | WindowedPair[TokenPair]) -> TokenPair:
    assert isinstance(pair, TokenPair)
    return pair


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [LONG, "猫 é 😀 的 ﬁ cat " * 12, "a [SEP] </s> cat " * 12])
def test_spans_cut_the_windows_out_of_the_text(kind: Kind, text: str) -> None:
    """In characters, not bytes; from the first token to the last, whatever spells them."""
    text = text.strip()
    (found,) = encoder(kind).encode("the cat", [text])

    assert isinstance(found, WindowedPair)
    assert found.spans[0][0] == 0
    assert found.spans[-1][1] == len(text)
    assert len(found.spans) == len(found.windows)
    for before, after in pairwise(found.spans):
        assert before[0] <= after[0] <= before[1] <= after[1]
        assert not text[before[1] : after[0]].strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_that_was_seen_before_has_the_same_windows(kind: Kind) -> None:
    rules = encoder(kind)
    rules.encode("something else", [LONG])
    (warm,), (fresh,) = rules.encode("a", [LONG]), encoder(kind).encode("a", [LONG])

    assert isinstance(warm, WindowedPair)
    assert isinstance(fresh, WindowedPair)
    assert warm.spans == fresh.spans
    for one, other in zip(warm.windows, fresh.windows, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


def test_a_query_that_takes_all_room_leaves_no_window() -> None:
    """A short max_length under only_second: there is nothing to score the document by."""
    rules = encoder(truncation=Truncation.ONLY_SECOND, max_length=8)

    (found,) = rules.encode("the cat sat on a mat", ["the dog " * 20])

    assert single(found).truncated


def test_the_rule_is_part_of_the_identity() -> None:
    rules = [
        None,
        WindowRule(3, WindowScore.MAX),
        WindowRule(4, WindowScore.MAX),
        WindowRule(3, WindowScore.MEAN),
    ]

    assert len({encoder(windows=rule).identity for rule in rules}) == 4


def test_the_settings_say_the_rule() -> None:
    assert WindowRule.of(RerankConfig()) is None
    config = RerankConfig(long_documents="window", window_overlap=5, window_score="mean")
    assert WindowRule.of(config) == WindowRule(5, WindowScore.MEAN)


def test_tokens_that_were_cut_are_not_taken_for_a_document() -> None:
    ids = np.arange(5, dtype=np.int32)

    for tokens in (Tokens(ids, 5), Tokens(ids, 9, np.zeros((5, 2), np.int32))):
        with pytest.raises(AssertionError, match="not kept whole"):
            in_windows(tokens, 3, RULE, lambda part: TokenPair(part, None, truncated=False))


def test_single_pairs_are_what_a_scorer_scores() -> None:
    found = list(single_pairs(encoder().encode("a", ["the cat", LONG])))

    assert all(isinstance(pair, TokenPair) for pair in found)
    assert len(found) > 4


def test_offsets_count_in_the_size_of_the_token_cache() -> None:
    cache = TokenCache(ENTRY_BYTES + 4 * 10)
    ids = np.arange(10, dtype=np.int32)
    cache.keep("whole", Tokens(ids, 10, np.zeros((10, 2), np.int32)))
    assert cache.look_up(["whole"]) == [None]

    cache.keep("bare", Tokens(ids, 10))
    assert cache.look_up(["bare"]) != [None]
