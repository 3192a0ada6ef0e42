"""How far one set of logits is from another. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Drift:
    """Absolute differences of logits, and what they do to rankings.

    ``spearman`` is the mean rank correlation within queries, ``top1_kept`` the share of queries
    whose best document stays the best; None where no query has several documents.
    """

    mean: float
    p99: float
    max: float
    spearman: float | None
    top1_kept: float | None


def measure_drift(
    reference: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]
) -> Drift:
    """Compare logits, one array (documents,) per query in both."""
    differences = np.abs(np.concatenate(found).astype(np.float64) - np.concatenate(reference))
    several = [(a, b) for a, b in zip(reference, found, strict=True) if len(a) > 1]
    return Drift(
        mean=float(differences.mean()),
        p99=float(np.quantile(differences, 0.99)),
        max=float(differences.max()),
        spearman=float(np.mean([spearman(a, b) for a, b in several])) if several else None,
        top1_kept=(
            float(np.mean([b[a.argmax()] >= b.max() for a, b in several])) if several else None
        ),
    )


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return the rank correlation: Pearson's over ranks, equal values sharing their mean rank.

    Where one side is all equal the order says nothing: 1 if both are, else 0.
    """
    ranks = np.stack([_ranks(first), _ranks(second)])  # (2, values)
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1)
    if not lengths.all():
        return float(lengths[0] == lengths[1])
    return float(ranks[0] @ ranks[1] / lengths.prod())


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    # The ranks of a group end where those of the groups below it and its own are counted.
    mean_rank: NDArray[np.float64] = np.cumsum(size) - (size - 1) / 2
    return mean_rank[group]
