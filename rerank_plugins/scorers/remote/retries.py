"""Whether and when a request is tried again. Pure but for the clock."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_TRIES: Final = 3
"""Times that a request is sent: a server that is gone for longer is the circuit breaker's."""

SHARE: Final = 0.1
"""Retries that each request earns: a server that fails all of them gets a tenth more, no more."""

FLOOR_PER_S: Final = 0.5
"""Retries that are earned by waiting, so that those who ask seldom have some."""

MOST_SAVED: Final = 10.0
"""Retries that may be saved up; a scorer begins with them."""

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 2.0
LONGEST_RETRY_AFTER_S: Final = 10.0
"""A server that wants to be left alone for longer is its callers' to wait for."""


class RetryBudget:
    """A token bucket: retries are a share of the requests, however many fail at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._saved = MOST_SAVED
        self._earned_at = clock()

    def earn(self) -> None:
        """Note a request that is sent for the first time."""
        self._earn(SHARE)

    def spend(self) -> bool:
        """Take one retry out; False if there is none."""
        self._earn(0.0)
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

    def _earn(self, share: float) -> None:
        now = self._clock()
        since, self._earned_at = now - self._earned_at, now
        self._saved = min(MOST_SAVED, self._saved + share + since * FLOOR_PER_S)


def wait_s(tries: int, retry_after_s: float | None) -> float:
    """Return how long to wait after so many *tries*: at random up to twice as long each time.

    Callers who failed together would otherwise come back together. At least *retry_after_s*, where
    the server said so.
    """
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1))
    jitter = random.uniform(0.0, longest)  # noqa: S311  spreads load, keeps no secret
    return jitter + (retry_after_s or 0.0)
