"""Logits to scores, and scores to the documents that are kept. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BLANK_LOGIT = float(np.finfo(np.float32).min)
"""The logit of a document that has nothing to score: below every other, and valid JSON."""


def activate(logits: Sequence[float], activation: str) -> NDArray[np.float64]:
    """Turn (n,) logits into (n,) scores: ``sigmoid`` gives 0..1, ``logit`` leaves them as they are.

    Half precision would tie distinct logits beyond about 8, so this is computed in float64.
    """
    values = np.asarray(logits, dtype=np.float64)
    if activation == "logit":
        return values
    # exp of a negative number only: the naive form overflows for large negative logits.
    decay = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, decay) / (1.0 + decay)


def select(
    logits: Sequence[float],
    scores: NDArray[np.float64],
    *,
    top_n: int | None = None,
    score_threshold: float | None = None,
    min_results: int = 0,
) -> list[int]:
    """Return the indices of the documents that are kept, best first.

    Ordered by logit, so that scores which round to one value keep the logits' order; equal logits
    keep the input order. A score below *score_threshold* is dropped, but never so many that fewer
    than *min_results* stay; *top_n* bounds the result in any case.
    """
    order = np.argsort(-np.asarray(logits, dtype=np.float64), kind="stable")
    kept = len(order)
    if score_threshold is not None:
        kept = max(int(np.count_nonzero(scores >= score_threshold)), min(min_results, kept))
    if top_n is not None:
        kept = min(kept, top_n)
    return [int(index) for index in order[:kept]]
