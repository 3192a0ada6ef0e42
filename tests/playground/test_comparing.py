"""How far documents moved, and how much two rankings agree."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.playground.comparing import agreement, places_after
from rerank_plugins.results import RankedDocument, Ranking


def _ranking(*order: int) -> Ranking:
    documents = tuple(RankedDocument(place, 0.5, 0.0, str(place)) for place in order)
    return Ranking("q", documents, "fake", "sigmoid")


def test_places_are_those_of_the_order_given() -> None:
    assert places_after(_ranking(2, 0, 1)) == {2: 1, 0: 2, 1: 3}


@given(st.integers(2, 12).flatmap(lambda n: st.permutations(range(n))))
def test_tau_counts_the_pairs_that_stand_the_other_way_round(order: list[int]) -> None:
    pairs = list(combinations(order, 2))
    agreeing = sum(1 if before < after else -1 for before, after in pairs)

    found = agreement(_ranking(*order), _ranking(*range(len(order))))

    assert found.tau == pytest.approx(agreeing / len(pairs))
    assert found.documents == len(order)


def test_only_documents_that_both_ranked_are_compared() -> None:
    found = agreement(_ranking(3, 0, 1, 2), _ranking(2, 1, 0))

    assert (found.documents, found.tau) == (3, -1.0)


def test_the_first_ones_in_common_are_counted() -> None:
    found = agreement(_ranking(0, 1, 2, 3, 4), _ranking(4, 0, 3, 1, 2))
    assert (found.top, found.depth) == (1, 3)

    found = agreement(_ranking(0, 1), _ranking(1, 0))
    assert (found.top, found.depth) == (2, 2)


def test_one_document_has_no_order_to_agree_on() -> None:
    assert agreement(_ranking(0), _ranking(0)).tau is None
    assert agreement(_ranking(), _ranking()).tau is None
