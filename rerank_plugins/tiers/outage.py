"""Whether something that failed is left alone for now."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
"""How long it is left alone after the first failure: a server that restarts is back by then."""

LONGEST_PAUSE_S: Final = 30.0
"""How long at most, after failures that double the pause."""


class Outage:
    """Keeps callers from something that fails, but for one now and then who tries.

    Each change is logged once, as *what* was tried. *clock* gives seconds.
    """

    def __init__(self, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        # The garbage collector may close an engine in the middle of another call of a thread.
        self._lock = threading.RLock()
        self._pause_s = 0.0
        self._until = 0.0
        self._trying = False

    def admits(self) -> bool:
        """Whether to try now; who is let through while it fails keeps others out for a pause."""
        with self._lock:
            if not self._pause_s:
                return True
            now = self._clock()
            if now < self._until:
                return False
            self._until = now + self._pause_s
            self._trying = True
            return True

    def succeeded(self) -> None:
        """Note that it works."""
        with self._lock:
            was, self._pause_s = self._pause_s, 0.0
            self._trying = False
        if was:
            logger.info("%s works again", self._what)

    def failed(self, error: BaseException) -> None:
        """Note that it does not."""
        with self._lock:
            was = self._pause_s
            if was and not self._trying:
                # Let through before it failed: ten who waited together are one failure.
                return
            self._trying = False
            self._pause_s = min(LONGEST_PAUSE_S, 2 * was) if was else FIRST_PAUSE_S
            self._until = self._clock() + self._pause_s
        if not was:
            logger.warning(
                "%s fails (%s: %s); pairs are scored without it, and it is tried again",
                self._what,
                type(error).__name__,
                first_line(error),
            )
