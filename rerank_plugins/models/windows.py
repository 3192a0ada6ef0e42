"""Documents that are longer than a pair has room for: in windows that overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self

from rerank_plugins.options import LongDocuments, WindowScore
from rerank_plugins.protocols import PairT
from rerank_plugins.results import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.token_cache import Tokens


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How many tokens neighbouring windows share, and what their logits come to."""

    overlap: int
    score: WindowScore

    @classmethod
    def of(cls, config: RerankConfig) -> Self | None:
        """Return what the settings say, None where long documents are cut."""
        if config.long_documents is LongDocuments.TRUNCATE:
            return None
        return cls(overlap=config.window_overlap, score=config.window_score)

    def __str__(self) -> str:
        return f"{self.score} of windows that share {self.overlap} tokens"


@dataclass(frozen=True, slots=True, eq=False)
class WindowedPair(Generic[PairT]):
    """A query with a document too long for one pair: a pair for each window, in order.

    ``spans[i]`` is ``(start, end)``, the characters of the document that ``windows[i]`` holds.
    """

    windows: tuple[PairT, ...]
    spans: tuple[tuple[int, int], ...]
    score: WindowScore
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """Length of all windows together."""
        return sum(window.tokens for window in self.windows)

    def combine(self, logits: Sequence[float]) -> tuple[float, Window]:
        """Return the document's logit, and the window of the highest: the first of equal ones.

        *logits* holds one of each window, in order.
        """
        best = max(range(len(logits)), key=logits.__getitem__)
        start, end = self.spans[best]
        # fsum: a mean must not depend on the order in which rounding happens.
        mean = math.fsum(logits) / len(logits)
        logit = logits[best] if self.score is WindowScore.MAX else mean
        return logit, Window(best, len(self.windows), start, end)


def window_slices(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Return the windows ``(start, stop)`` of *room* tokens that cover a document of *tokens*.

    Neighbours share *overlap* tokens, but never more than half a window. The last window ends with
    the document and is as long as the others, so it may share more.

    Raises:
        ValueError: there is no *room*.
    """
    if room < 1:
        raise ValueError("a window needs room for a token")
    if tokens <= room:
        return [(0, tokens)]
    step = room - min(overlap, room // 2)
    starts = [*range(0, tokens - room, step), tokens - room]
    return [(start, start + room) for start in starts]


def window_spans(
    slices: Iterable[tuple[int, int]], offsets: NDArray[np.int32]
) -> tuple[tuple[int, int], ...]:
    """Return the characters ``(start, end)`` that each slice of tokens holds.

    *offsets*, (tokens, 2), are the characters of each token.
    """
    return tuple(
        (int(offsets[start:stop, 0].min()), int(offsets[start:stop, 1].max()))
        for start, stop in slices
    )


def in_windows(
    document: Tokens, room: int, rule: WindowRule, pair: Callable[[NDArray[np.int32]], PairT]
) -> WindowedPair[PairT]:
    """Return a document, kept whole with its offsets, in windows of *room* tokens.

    *pair* makes the pair of one window from the ids in it.
    """
    if document.offsets is None or len(document.ids) != document.length:
        raise AssertionError("a document to be windowed was not kept whole")
    slices = window_slices(document.length, room, rule.overlap)
    return WindowedPair(
        windows=tuple(pair(document.ids[start:stop]) for start, stop in slices),
        spans=window_spans(slices, document.offsets),
        score=rule.score,
    )


def single_pairs(encoded: Iterable[PairT | WindowedPair[PairT]]) -> Iterator[PairT]:
    """Give what a scorer's ``forward`` takes: the windows of a document one by one."""
    for pair in encoded:
        if isinstance(pair, WindowedPair):
            yield from pair.windows
        else:
            yield pair
