"""Measures of rankings against grades, as trec_eval computes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_IR_MEASURES_NAME: Final = {
    "nDCG@10": "nDCG@10",
    "MRR@10": "RR@10",
    "recall@10": "R@10",
    "recall@100": "R@100",
}

MEASURES: Final = tuple(_IR_MEASURES_NAME)
"""nDCG has linear gain and its ideal from all grades; recall counts grades from 1 up."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Values by measure and query id; every query weighs the same in a mean."""

    values: Mapping[str, Mapping[str, float]]

    def means(self) -> dict[str, float]:
        """Return the mean of each measure over the queries; 0 where there are none."""
        return {name: _mean(list(by_query.values())) for name, by_query in self.values.items()}

    def gains(self, before: Measured) -> dict[str, float]:
        """Return by how much each mean is above that of *before*."""
        return {name: _mean(gains) for name, gains in self._paired(before).items()}

    def standard_errors(self, before: Measured) -> dict[str, float]:
        """Return the standard error of each of `gains`, from the differences query by query."""
        return {name: _standard_error(gains) for name, gains in self._paired(before).items()}

    def _paired(self, before: Measured) -> dict[str, list[float]]:
        return {
            name: [value - before.values[name][qid] for qid, value in by_query.items()]
            for name, by_query in self.values.items()
        }


def measure(
    grades: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Sequence[str]]
) -> Measured:
    """Measure *rankings*: document ids, best first and each once, by query id.

    Queries without a ranking here are left out, however they were graded.

    Raises:
        MissingExtraError: the package ``ir-measures`` is not installed.
    """
    try:
        import ir_measures
    except ImportError:
        raise MissingExtraError(
            package="ir-measures", extra="eval", needed_for="measuring rankings"
        ) from None
    wanted = {ir_measures.parse_measure(theirs): ours for ours, theirs in _IR_MEASURES_NAME.items()}
    qrels = {qid: dict(grades.get(qid, {})) for qid in rankings}
    # Ranks stand in for scores: trec_eval would order equal scores by document id.
    run = {
        qid: {docid: float(-rank) for rank, docid in enumerate(docids)}
        for qid, docids in rankings.items()
    }
    values: dict[str, dict[str, float]] = {ours: dict.fromkeys(rankings, 0.0) for ours in MEASURES}
    for found in ir_measures.iter_calc(list(wanted), qrels, run):
        values[wanted[found.measure]][found.query_id] = float(found.value)
    return Measured(values)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
