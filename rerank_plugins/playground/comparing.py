"""How far documents moved, and how much two rankings agree: arithmetic alone."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rerank_plugins.results import Ranking

_TOP: Final = 3


@dataclass(frozen=True, slots=True)
class Agreement:
    """How much two rankings agree on the documents that both ranked.

    ``tau`` is Kendall's, from -1 (one is the other reversed) to 1 (the same order), None for fewer
    than two documents. ``top`` of the first ``depth`` of each are among the first of the other.
    """

    documents: int
    tau: float | None
    top: int
    depth: int


def places_after(ranking: Ranking) -> dict[int, int]:
    """Return the rank of each document, from 1, by its place in the order given, from 0."""
    return {document.index: rank for rank, document in enumerate(ranking, start=1)}


def agreement(first: Ranking, second: Ranking) -> Agreement:
    """Compare two rankings of the same documents."""
    other = places_after(second)
    places = [other[document.index] for document in first if document.index in other]
    depth = min(_TOP, len(first), len(second))
    top = {document.index for document in first[:depth]} & {d.index for d in second[:depth]}
    return Agreement(len(places), _tau(places), len(top), depth)


def _tau(places: list[int]) -> float | None:
    """Kendall's tau of *places*, which hold no number twice, against their own order.

    With d pairs of n (n - 1) / 2 in the wrong order it is 1 - 4 d / (n (n - 1)); Kendall 1938.
    """
    count = len(places)
    if count < 2:
        return None
    seen: list[int] = []
    wrong = 0
    for place in places:
        wrong += len(seen) - bisect_right(seen, place)
        insort(seen, place)
    return 1 - 4 * wrong / (count * (count - 1))
