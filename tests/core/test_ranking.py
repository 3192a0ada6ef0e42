"""Logits to scores to the documents that are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.ranking import BLANK_LOGIT, activate, select

logits = st.lists(st.floats(-80, 80, width=32), max_size=60)


@given(logits)
def test_sigmoid_is_the_textbook_one(values: list[float]) -> None:
    expected = [1 / (1 + math.exp(-value)) for value in values]

    assert activate(values, "sigmoid").tolist() == pytest.approx(expected, rel=1e-12)


def test_sigmoid_survives_extremes() -> None:
    with np.errstate(all="raise", under="ignore"):
        scores = activate([BLANK_LOGIT, -1000.0, 0.0, 1000.0], "sigmoid")

    assert scores.tolist() == [0.0, 0.0, 0.5, 1.0]


def test_logit_activation_changes_nothing() -> None:
    assert activate([-3.5, 0.0, 7.25], "logit").tolist() == [-3.5, 0.0, 7.25]


@given(logits)
def test_order_is_by_logit_and_ties_keep_input_order(values: list[float]) -> None:
    kept = select(values, activate(values, "sigmoid"))

    assert kept == sorted(range(len(values)), key=lambda i: (-values[i], i))


def test_scores_that_round_to_one_value_keep_the_order_of_their_logits() -> None:
    values = [50.0, 60.0, 55.0]
    scores = activate(values, "sigmoid")

    assert len(set(scores.tolist())) == 1
    assert select(values, scores) == [1, 2, 0]


@given(
    logits,
    st.none() | st.integers(1, 70),
    st.none() | st.floats(-0.1, 1.1),
    st.integers(0, 70),
)
def test_threshold_min_results_and_top_n(
    values: list[float], top_n: int | None, threshold: float | None, min_results: int
) -> None:
    scores = activate(values, "sigmoid")

    kept = select(values, scores, top_n=top_n, score_threshold=threshold, min_results=min_results)

    everything = select(values, scores)
    assert kept == everything[: len(kept)]
    bound = len(values) if top_n is None else min(top_n, len(values))
    good = len(values) if threshold is None else sum(score >= threshold for score in scores)
    assert len(kept) == min(bound, max(good, min(min_results, len(values))))
