"""Opening a scorer for callers that wait only so long: it goes on without them."""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from rerank_plugins.errors import RerankError, RerankTimeoutError, ScoringError

if TYPE_CHECKING:
    from collections.abc import Callable


class Opener:
    """Opens one scorer at a time in a thread of its own, whoever waits for it."""

    def __init__(self, name: str, open_it: Callable[[], object]) -> None:
        self._name = name
        self._open_it = open_it
        self._lock = threading.Lock()
        self._under_way: Future[None] | None = None

    def wait(self, deadline: float) -> None:
        """Open, or wait for the opening that is under way, until *deadline* (`time.monotonic`).

        Raises:
            RerankTimeoutError: it takes longer; the next caller may find it done.
            RerankError: what the opening raised.
        """
        with self._lock:
            if self._under_way is None or self._under_way.done():
                self._under_way = self._begin()
            opening = self._under_way
        if not wait([opening], max(0.0, deadline - time.monotonic())).done:
            raise RerankTimeoutError(f"{self._name} was not open when the deadline passed")
        error = opening.exception()
        if isinstance(error, RerankError):
            # One for each caller: whoever gets it may add notes.
            raise copy.copy(error) from error.__cause__
        if error is not None:
            raise error

    def _begin(self) -> Future[None]:
        opening: Future[None] = Future()
        # Not held back at exit: closing the engine waits for an opening by its lock.
        thread = threading.Thread(
            target=self._open,
            args=(opening,),
            name=f"rerank-plugins open {self._name}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as exc:
            raise ScoringError(f"no thread to open {self._name}: {exc}", retryable=True) from exc
        return opening

    def _open(self, opening: Future[None]) -> None:
        try:
            self._open_it()
        # Whatever it is, somebody waits for it.
        except BaseException as exc:  # noqa: BLE001
            opening.set_exception(exc)
        else:
            opening.set_result(None)
