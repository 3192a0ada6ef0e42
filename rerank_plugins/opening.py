"""Opening scorers: each in its own thread, and for callers that wait only so long."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

from rerank_plugins.errors import ConfigError, RerankError, RerankTimeoutError, ScoringError
from rerank_plugins.home import Home, join_all
from rerank_plugins.watching import watched_opening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rerank_plugins.observing import Audience
    from rerank_plugins.protocols import AnyScorer


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


class ReplicaOpener:
    """Opens the replicas of a scorer, each in a `Home`, and tells *audience*.

    What an opening that fails has opened is closed, if it *closes*: a user's own scorer is not.
    """

    def __init__(
        self,
        name: str,
        openers: Sequence[Callable[[], AnyScorer]],
        audience: Audience,
        *,
        closes: bool,
    ) -> None:
        self._name = name
        self._openers = openers
        self._audience = audience
        self._closes = closes
        self.homes: list[Home] = []
        # Those of an opening that failed or was given up: closing what was opened, or opening yet.
        self._leaving: list[Home] = []

    @property
    def at_home(self) -> bool:
        """Whether the thread that asks is one of the homes."""
        return any(home.here for home in (*self.homes, *self._leaving))

    def wait(self) -> None:
        """Wait until openings that failed or were given up have ended, for a while."""
        join_all(self._leaving)

    @contextmanager
    def opened(self) -> Iterator[list[AnyScorer]]:
        """Give the scorers, in the order of ``homes``; they are closed if what follows fails.

        Raises:
            ConfigError: they would not answer alike.
            ModelLoadError, MissingExtraError: one cannot be opened.
        """
        # What an opening that was given up holds is free before another one takes as much.
        self.wait()
        title = f"rerank-plugins {self._name}"
        self.homes = [Home(f"{title} {i}" if i else title) for i in range(len(self._openers))]
        opened: list[list[AnyScorer]] = [[] for _ in self.homes]
        openings: list[Future[AnyScorer]] = []
        begun = 0
        try:
            for home, open_scorer, here in zip(self.homes, self._openers, opened, strict=True):
                begun += 1
                # Noted in that thread: whoever waits here may be interrupted at any moment.
                at_home = partial(_open_into, here, open_scorer)
                openings.append(home.run(partial(copy_context().run, at_home)))
                watched_opening(self._audience, self._name, partial(_last_of, openings))
                _check_alike(opened[0][0], here[0])
            yield [scorer for (scorer,) in opened]
        except BaseException:
            self._leaving, self.homes = self.homes, []
            for home, here in zip(self._leaving, opened, strict=True):
                home.end(partial(_close_all, here) if self._closes else None)
            # Who is interrupted does not wait for an opening to end.
            if len(openings) == begun and all(opening.done() for opening in openings):
                self.wait()
            openings.clear()
            raise

    def reopened(self, first: AnyScorer, number: int) -> AnyScorer:
        """Open replica *number* anew: one that answers as *first* did."""
        scorer = watched_opening(self._audience, self._name, self._openers[number])
        try:
            _check_alike(first, scorer)
        except ConfigError:
            scorer.close()
            raise
        return scorer


def _open_into(opened: list[AnyScorer], open_scorer: Callable[[], AnyScorer]) -> AnyScorer:
    opened.append(open_scorer())
    return opened[0]


def _last_of(openings: list[Future[AnyScorer]]) -> AnyScorer:
    # Asked by the list, which is cleared: a future and the error in it are a ring.
    return openings[-1].result()


def _close_all(scorers: list[AnyScorer]) -> None:
    while scorers:
        with contextlib.suppress(Exception):
            scorers.pop().close()


def _check_alike(first: AnyScorer, scorer: AnyScorer) -> None:
    """Raise `ConfigError` where two replicas would not give the same logits."""
    if scorer.identity != first.identity:
        raise ConfigError(
            f"replicas: they must answer alike, and one is {scorer.identity!r}, another "
            f"{first.identity!r}; name devices of one kind, or set the precision"
        )
