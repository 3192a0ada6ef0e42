"""How the time of one call is divided among the stages of the data path."""

from __future__ import annotations

import threading
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Final, Literal

from rerank_plugins.events import StageSeconds

if TYPE_CHECKING:
    from collections.abc import Callable

Work = Literal["open", "clean", "look_up", "encode"]
Wait = Literal["queue", "forward", "finish"]

STAGES: Final = tuple(each.name for each in fields(StageSeconds))


class StageClock:
    """Charges every moment of a call to one stage.

    What the call's own thread works on goes before what its pairs wait for meanwhile: a request
    that streams encodes while the model scores. So the stages add up to the duration, *now* being
    a clock in seconds. ``tokens`` is for whoever encodes to count in.
    """

    __slots__ = ("_ended", "_lock", "_now", "_seconds", "_since", "_wait", "_work", "tokens")

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        # The garbage collector may end the call in the middle of a charge.
        self._lock = threading.RLock()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._work: Work | None = None
        self._wait: Wait = "queue"
        self._ended = False
        self._since = now()
        self.tokens = 0

    def work(self, stage: Work | None) -> None:
        """Begin to work on *stage* in the call's own thread; with None, begin to wait."""
        with self._lock:
            self._charge()
            self._work = stage

    def wait(self, stage: Wait) -> None:
        """Say what the call waits for from now on, whenever its own thread does not work."""
        with self._lock:
            self._charge()
            self._wait = stage

    def end(self) -> StageSeconds:
        """Stop, and return the seconds of each stage; what is charged later is lost."""
        with self._lock:
            self._charge()
            self._ended = True
            return StageSeconds(**self._seconds)

    def _charge(self) -> None:
        now = self._now()
        if not self._ended:
            self._seconds[self._work or self._wait] += now - self._since
        self._since = now
