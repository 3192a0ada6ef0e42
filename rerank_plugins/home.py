"""The thread that a replica's scorer lives in: opened, entered and closed there alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar, cast

from rerank_plugins.errors import ScoringError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

EXIT_WAIT_S = 30.0
"""How long a closing waits for the running batch: a scorer that never returns must not hold it."""

_Task = tuple["Callable[[], object]", "Future[object]"]


class Home:
    """Runs functions one after another in one thread, which starts with the first.

    OpenMP keeps a pool of threads for each thread that computes, and two pools are more threads
    than cores. The thread is a daemon: the end of the interpreter is told by closing the engine.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def here(self) -> bool:
        """Whether this is the thread."""
        return threading.current_thread() is self._thread

    def run(self, function: Callable[[], T]) -> Future[T]:
        """Call *function* in the thread, after what was given before, unless it is cancelled.

        Raises:
            ScoringError: the system gives no more threads.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name=self._name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError as exc:
                self._thread = None
                raise ScoringError(f"no thread for {self._name}: {exc}", retryable=True) from exc
        done: Future[T] = Future()
        self._tasks.put((function, cast("Future[object]", done)))
        return done

    def end(self, last: Callable[[], object] | None = None) -> None:
        """End the thread, if it runs, after what was given and *last*."""
        if self._thread is not None:
            if last is not None:
                self.run(last)
            self._tasks.put(None)

    def join(self, seconds: float) -> None:
        """Wait until it has ended, *seconds* at most; in the thread itself there is no waiting."""
        if self._thread is not None and not self.here:
            self._thread.join(seconds)

    def _live(self) -> None:
        while (task := self._tasks.get()) is not None:
            _do(*task)
            # Forgotten: it may sleep for long, and holds what the function gave.
            del task


def _do(function: Callable[[], object], done: Future[object]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        result = function()
    # Whatever it is, somebody waits for it.
    except BaseException as exc:  # noqa: BLE001
        done.set_exception(exc)
        # The error holds this frame: a ring, and who waits would be in it.
        del function, done
    else:
        done.set_result(result)


def join_all(homes: Iterable[Home]) -> None:
    """Wait until *homes* have ended, `EXIT_WAIT_S` at most."""
    until = time.monotonic() + EXIT_WAIT_S
    for home in homes:
        home.join(max(0.0, until - time.monotonic()))
