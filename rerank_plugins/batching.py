"""Token lengths to batches under a token budget. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def next_batch(
    lengths: Sequence[int], position: int, *, budget: int, padded: bool
) -> tuple[int, int]:
    """Return the slice ``(start, stop)`` of ascending *lengths* to score together.

    The slice holds *position*, the pair that has waited longest, and grows towards whichever
    neighbour is nearer in length: padding is most of the cost when a short pair sits beside a long
    one. A batch costs ``pairs * longest`` tokens where *padded*, else the sum of its lengths, and
    stays within *budget*; a pair longer than the budget travels alone.
    """
    anchor = lengths[position]
    start, stop = position, position + 1
    total, longest = anchor, anchor

    def fits(length: int) -> bool:
        if padded:
            return (stop - start + 1) * max(longest, length) <= budget
        return total + length <= budget

    while True:
        shorter = lengths[start - 1] if start > 0 else None
        longer = lengths[stop] if stop < len(lengths) else None
        take_longer = (
            longer is not None
            and (shorter is None or longer - anchor <= anchor - shorter)
            and fits(longer)
        )
        if take_longer and longer is not None:
            total, longest, stop = total + longer, longer, stop + 1
        elif shorter is not None and fits(shorter):
            total, start = total + shorter, start - 1
        else:
            return start, stop


def batch_cost(lengths: Sequence[int], *, padded: bool) -> int:
    """Tokens that a batch of pairs of these *lengths* makes the model compute."""
    return max(lengths, default=0) * len(lengths) if padded else sum(lengths)
