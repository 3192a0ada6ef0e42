"""Which of several servers is asked. Pure but for the clock."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from rerank_plugins.scorers.remote.identity import Served

logger = logging.getLogger(__name__)

MOST_STRIKES: Final = 6
"""Strikes in a row after which a server is left alone; `failures.Kind` says what is how many."""

FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 30.0
"""A server that was repaired is found within half a minute."""

FRESH_S: Final = 30.0
"""How long it is believed what a server said of itself: another model may answer there by now."""

_GROWTH: Final = 2.0


class Server:
    """One address with what is known of it; ``served`` is None until it has said what it serves."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.served: Served | None = None
        self.asked_again_at = 0.0
        self.outstanding = 0
        self.resting_until = 0.0
        self.asked_at = 0
        self._strikes = 0
        self._rest_s = FIRST_REST_S
        self._suspect = False

    def ready(self, now: float) -> bool:
        """Whether it may be asked: not while it rests, and after that by one caller at a time."""
        return now >= self.resting_until and not (self._suspect and self.outstanding)

    def introduced(self, served: Served, now: float) -> None:
        """Note what it says that it serves."""
        self.served, self.asked_again_at = served, now + FRESH_S

    def doubted(self, now: float) -> bool:
        """Whether it is time to hear again what it serves: for one request, not for all."""
        if now < self.asked_again_at:
            return False
        self.asked_again_at = now + FRESH_S
        return True

    def answered(self) -> None:
        """Note a success."""
        if self._suspect:
            logger.info("%s answers again", self.address)
        self._strikes, self._rest_s, self._suspect = 0, FIRST_REST_S, False

    def failed(self, strikes: int, now: float, words: str) -> None:
        """Note a failure; it is let rest after too many, for twice as long each time.

        Who was gone may come back as somebody else, so that it has to say again what it serves.
        """
        self._strikes += strikes
        if not strikes or (self._strikes < MOST_STRIKES and not self._suspect):
            return
        if now >= self.resting_until:
            logger.warning("%s is left alone for %.0f s: %s", self.address, self._rest_s, words)
            self.resting_until = now + self._rest_s
            self._rest_s = min(LONGEST_REST_S, self._rest_s * _GROWTH)
        self._strikes, self._suspect, self.served = 0, True, None


class Fleet:
    """The servers of one scorer."""

    def __init__(
        self, addresses: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.servers = [Server(address) for address in addresses]
        self.clock = clock
        self._asked = 0

    def choose(self, tried: Collection[Server] = ()) -> Server:
        """Return the one with the fewest requests under way, of those that may be asked.

        One that was *tried* is asked again only where there is no other. If all rest, the one that
        is to be asked first is: there is nothing to lose.
        """
        ready = self.others(tried) or self.others(())
        if ready:
            chosen = min(ready, key=lambda each: (each.outstanding, each.asked_at))
        else:
            chosen = min(self.servers, key=lambda each: each.resting_until)
        # Ties go around.
        self._asked += 1
        chosen.asked_at = self._asked
        return chosen

    def others(self, tried: Collection[Server]) -> list[Server]:
        """Return those that may be asked and were not *tried*."""
        now = self.clock()
        return [each for each in self.servers if each not in tried and each.ready(now)]
