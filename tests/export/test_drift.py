"""Drift and rank agreement, by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_plugins.export.drift import measure_drift, spearman


def arrays(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # One neighbouring swap of four: 1 - 6·2 / (4·15).
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        # Ranks 1.5 1.5 3 against 1 2 3: Pearson of these.
        ([5, 5, 9], [1, 2, 3], 0.8660254),
        ([5, 5], [5, 5], 1.0),
        ([1, 2], [5, 5], 0.0),
    ],
)
def test_spearman_shares_the_ranks_of_equal_values(
    first: list[float], second: list[float], expected: float
) -> None:
    assert spearman(np.array(first), np.array(second)) == pytest.approx(expected)


def test_ranks_are_compared_within_queries_alone() -> None:
    """The second query's logits are all higher: across queries the order would look right."""
    drift = measure_drift(arrays([1, 2], [11, 12]), arrays([2, 1], [12, 11]))

    assert drift.spearman == pytest.approx(-1)
    assert drift.top1_kept == 0
    assert (drift.mean, drift.max) == (1, 1)


def test_a_best_document_that_still_ties_for_the_best_is_kept() -> None:
    assert measure_drift(arrays([1, 3, 2]), arrays([1, 2, 2])).top1_kept == 1


def test_the_ninety_ninth_percentile_spares_one_in_a_hundred() -> None:
    found = [0.0] * 200
    found[7] = 5.0

    drift = measure_drift(arrays([0.0] * 200), arrays(found))

    assert drift.p99 == 0
    assert drift.max == 5


def test_queries_of_one_document_have_no_ranking_to_compare() -> None:
    drift = measure_drift(arrays([1.0], [2.0]), arrays([1.5], [2.0]))

    assert drift.spearman is None
    assert drift.top1_kept is None
