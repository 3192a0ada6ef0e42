"""Token lengths to batches under a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.batching import batch_cost, next_batch


@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=120),
    st.integers(0, 10_000),
    st.integers(1, 5000),
    st.booleans(),
)
def test_a_batch_holds_the_oldest_and_fits_the_budget(
    lengths: list[int], where: int, budget: int, padded: bool
) -> None:
    lengths.sort()
    position = where % len(lengths)

    start, stop = next_batch(lengths, position, budget=budget, padded=padded)

    assert 0 <= start <= position < stop <= len(lengths)
    batch = lengths[start:stop]
    assert len(batch) == 1 or batch_cost(batch, padded=padded) <= budget


@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=120),
    st.integers(0, 10_000),
    st.integers(1, 5000),
    st.booleans(),
)
def test_no_neighbour_that_fits_is_left_out(
    lengths: list[int], where: int, budget: int, padded: bool
) -> None:
    lengths.sort()

    start, stop = next_batch(lengths, where % len(lengths), budget=budget, padded=padded)

    if start > 0:
        assert batch_cost(lengths[start - 1 : stop], padded=padded) > budget
    if stop < len(lengths):
        assert batch_cost(lengths[start : stop + 1], padded=padded) > budget


def test_a_short_pair_travels_with_short_pairs() -> None:
    lengths = [10, 11, 12, 13, 400, 410]

    assert next_batch(lengths, 2, budget=60, padded=True) == (0, 4)
    assert next_batch(lengths, 4, budget=900, padded=True) == (4, 6)


def test_padding_is_what_makes_a_batch_cost_more_than_its_tokens() -> None:
    assert batch_cost([3, 5, 10], padded=True) == 30
    assert batch_cost([3, 5, 10], padded=False) == 18
    assert batch_cost([], padded=True) == 0
