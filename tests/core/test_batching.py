"""Pairs to batches under a token budget."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.batching import ATTENDED, WaitingTokens, batch_cost, batch_order, next_batch

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIXES = {b"": 0, b"first": 40, b"second": 7, b"third": 300}


class Pair(NamedTuple):
    """A pair that waits."""

    own: int
    prefix: bytes = b""

    @property
    def prefix_tokens(self) -> int:
        return PREFIXES[self.prefix]


def plain(lengths: Iterable[int]) -> list[Pair]:
    return [Pair(length) for length in sorted(lengths)]


def budgeted(batch: list[Pair], oldest: Pair, *, padded: bool) -> int:
    """What counts against the budget: the prefix of the oldest is free, where pairs share it."""
    return batch_cost(batch, padded=padded) - (0 if padded else oldest.prefix_tokens)


def fits(batch: list[Pair], oldest: Pair, budget: int, *, padded: bool) -> bool:
    seen = sum(pair.own + pair.prefix_tokens for pair in batch)
    return budgeted(batch, oldest, padded=padded) <= budget and (
        padded or seen <= ATTENDED * (budget + oldest.prefix_tokens)
    )


def in_order(pairs: Iterable[Pair], *, padded: bool) -> list[Pair]:
    return sorted(pairs, key=lambda pair: batch_order(pair, padded=padded))


pairs_waiting = st.lists(
    st.builds(Pair, st.integers(1, 600), st.sampled_from(sorted(PREFIXES))),
    min_size=1,
    max_size=60,
)
places = st.integers(0, 10_000)
budgets = st.integers(1, 5000)


@given(pairs_waiting, places, budgets, st.booleans())
def test_a_batch_holds_the_oldest_and_fits_the_budget(
    waiting: list[Pair], where: int, budget: int, padded: bool
) -> None:
    waiting = in_order(waiting, padded=padded)
    position = where % len(waiting)

    start, stop = next_batch(waiting, position, budget=budget, padded=padded)

    assert 0 <= start <= position < stop <= len(waiting)
    batch = waiting[start:stop]
    assert len(batch) == 1 or fits(batch, waiting[position], budget, padded=padded)


@given(pairs_waiting, places, budgets, st.booleans())
def test_no_neighbour_that_fits_is_left_out(
    waiting: list[Pair], where: int, budget: int, padded: bool
) -> None:
    waiting = in_order(waiting, padded=padded)
    oldest = waiting[where % len(waiting)]

    start, stop = next_batch(waiting, where % len(waiting), budget=budget, padded=padded)

    if start > 0:
        assert not fits(waiting[start - 1 : stop], oldest, budget, padded=padded)
    if stop < len(waiting):
        assert not fits(waiting[start : stop + 1], oldest, budget, padded=padded)


# Few, so that the next of another prefix is often nearer in length.
@given(
    st.lists(
        st.builds(Pair, st.integers(1, 60), st.sampled_from([b"first", b"second"])),
        min_size=3,
        max_size=6,
    ),
    places,
    st.integers(60, 180),
)
def test_no_pair_of_another_prefix_is_taken_before_one_of_the_same(
    waiting: list[Pair], where: int, budget: int
) -> None:
    waiting = in_order(waiting, padded=False)
    position = where % len(waiting)
    prefix = waiting[position].prefix

    start, stop = next_batch(waiting, position, budget=budget, padded=False)

    batch = waiting[start:stop]
    if any(pair.prefix != prefix for pair in batch):
        same = [pair for pair in batch if pair.prefix == prefix]
        beside = [*waiting[max(0, start - 1) : start], *waiting[stop : stop + 1]]
        # A neighbour that did not come along had no room beside those of its own prefix either.
        assert not any(
            fits([*same, pair], same[0], budget, padded=False)
            for pair in beside
            if pair.prefix == prefix
        )


@given(pairs_waiting, budgets, st.booleans())
def test_batch_after_batch_every_pair_comes_once(
    waiting: list[Pair], budget: int, padded: bool
) -> None:
    waiting = in_order(waiting, padded=padded)
    left, scored = list(waiting), []
    while left:
        start, stop = next_batch(left, len(left) // 2, budget=budget, padded=padded)
        scored += left[start:stop]
        del left[start:stop]

    assert Counter(scored) == Counter(waiting)


@given(pairs_waiting, places, budgets)
def test_a_padded_batch_knows_no_prefix(waiting: list[Pair], where: int, budget: int) -> None:
    """Each of its rows holds the prefix: the pairs are what they are in length."""
    waiting = in_order(waiting, padded=True)
    whole = plain(pair.own + pair.prefix_tokens for pair in waiting)
    position = where % len(waiting)

    found = next_batch(waiting, position, budget=budget, padded=True)

    assert found == next_batch(whole, position, budget=budget, padded=True)
    assert batch_cost(waiting, padded=True) == batch_cost(whole, padded=True)


def test_a_short_pair_travels_with_short_pairs() -> None:
    pairs = plain([10, 11, 12, 13, 400, 410])

    assert next_batch(pairs, 2, budget=60, padded=True) == (0, 4)
    assert next_batch(pairs, 4, budget=900, padded=True) == (4, 6)


def test_a_batch_grows_to_the_nearer_neighbour_and_to_the_longer_of_two_as_near() -> None:
    assert next_batch(plain([10, 20, 25]), 1, budget=45, padded=False) == (1, 3)
    assert next_batch(plain([16, 20, 25]), 1, budget=45, padded=False) == (0, 2)
    assert next_batch(plain([15, 20, 25]), 1, budget=45, padded=False) == (1, 3)


def test_pairs_of_one_prefix_travel_together_however_their_lengths_differ() -> None:
    pairs = [Pair(5, b"first"), Pair(50, b"first"), Pair(50, b"second"), Pair(51, b"second")]

    # Room for one pair of each prefix, or for two of one.
    budget = 50 + 7 + 50
    assert next_batch(pairs, 1, budget=budget, padded=False) == (0, 2)
    assert next_batch(pairs, 2, budget=budget, padded=False) == (2, 4)


def test_several_prefixes_share_a_batch_that_has_room_for_them() -> None:
    pairs = [Pair(5, b"first"), Pair(50, b"first"), Pair(50, b"second")]

    assert next_batch(pairs, 0, budget=55 + 57, padded=False) == (0, 3)
    assert next_batch(pairs, 0, budget=55 + 56, padded=False) == (0, 2)


class Document(NamedTuple):
    """A document beside a long query."""

    own: int
    prefix_tokens: int
    prefix: bytes = b"query"


def batches_of(waiting: list[Document], budget: int) -> list[int]:
    """Return how many documents travel in each batch, the first that is left always the oldest."""
    left, found = list(waiting), []
    while left:
        start, stop = next_batch(left, 0, budget=budget, padded=False)
        found.append(stop - start)
        del left[start:stop]
    return found


@pytest.mark.parametrize("query", [100, 1000, 1900, 2100, 3000])
def test_however_long_a_query_is_its_documents_share_it(query: int) -> None:
    assert batches_of([Document(180, query)] * 50, 2048) == [11, 11, 11, 11, 6]


@pytest.mark.parametrize("query", [73, 500])
def test_usual_documents_fill_the_budget(query: int) -> None:
    assert batches_of([Document(283, query)] * 50, 2048) == [7] * 7 + [1]


def test_snippets_beside_a_long_query_are_as_many_as_may_be_seen_at_once() -> None:
    batches = batches_of([Document(10, 990)] * 200, 2048)

    # 204 would fit the budget, and hold the keys of the query 204 times.
    assert batches[0] == ATTENDED * (2048 + 990) // 1000 == 24


def test_padding_is_what_makes_a_batch_cost_more_than_its_tokens() -> None:
    assert batch_cost(plain([3, 5, 10]), padded=True) == 30
    assert batch_cost(plain([3, 5, 10]), padded=False) == 18
    assert batch_cost([], padded=True) == 0
    assert batch_cost([], padded=False) == 0


def test_a_prefix_costs_once_in_a_batch_that_is_not_padded() -> None:
    pairs = [Pair(3, b"first"), Pair(5, b"first"), Pair(1), Pair(10, b"second")]

    assert batch_cost(pairs, padded=False) == 3 + 5 + 1 + 10 + 40 + 7
    assert batch_cost(pairs, padded=True) == 4 * 45


@given(st.lists(st.tuples(pairs_waiting, st.booleans()), max_size=6), st.booleans())
def test_what_waits_costs_what_one_batch_of_it_would(
    comings: list[tuple[list[Pair], bool]], padded: bool
) -> None:
    """Each group of pairs comes, and goes again at once or after all have come."""
    tokens = WaitingTokens(padded=padded)
    waiting: list[Pair] = []

    def expected() -> int:
        if padded:
            return sum(pair.own + pair.prefix_tokens for pair in waiting)
        return batch_cost(waiting, padded=False)

    for pairs, stays in comings:
        tokens.add(pairs)
        waiting += pairs
        assert tokens.total == expected()
        if not stays:
            tokens.remove(pairs)
            del waiting[len(waiting) - len(pairs) :]
            assert tokens.total == expected()
    while waiting:
        tokens.remove([waiting.pop()])
        assert tokens.total == expected()
    assert tokens.total == 0


def test_a_scorer_that_is_wrong_about_its_prefix_leaves_no_tokens_behind() -> None:
    pairs = [Document(3, 10), Document(4, 99)]
    tokens = WaitingTokens(padded=False)

    tokens.add(pairs)
    tokens.remove(pairs[:1])
    tokens.remove(pairs[1:])

    assert tokens.total == 0
