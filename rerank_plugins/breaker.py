"""The circuit breaker: whether a model that failed is worth asking again. Pure but for its lock."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import (
    MissingExtraError,
    ModelLoadError,
    PluginError,
    RerankTimeoutError,
    ScoringError,
    first_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

FAILURES_TO_OPEN: Final = 5
"""Failures in a row: fewer may be one bad document, sent again by the client that has it."""

COOL_DOWN_S: Final = 5.0
"""How long it stays open at first: a device that was busy or out of memory is back by then."""

LONGEST_COOL_DOWN_S: Final = 60.0
"""How long it stays open at most: a model that was repaired is found within a minute."""

_GROWTH: Final = 2.0


class State(StrEnum):
    """``closed`` lets every caller through, ``open`` none, ``half_open`` one: the probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Permit:
    """One caller's leave to ask; it owes one of the three answers, and the first one counts."""

    __slots__ = ("__weakref__", "_breaker")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker: CircuitBreaker | None = breaker

    def succeed(self) -> None:
        """Say that the model answered."""
        self._settle(answered=True)

    def fail(self, error: BaseException) -> None:
        """Say that it did not; an *error* that says nothing about the model is a `release`."""
        self._settle(error=error)

    def release(self) -> None:
        """Say that nothing was learned: the caller went away, or had nothing to be scored."""
        self._settle()

    def _settle(self, *, answered: bool = False, error: BaseException | None = None) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.settle(self, answered=answered, error=error)


class CircuitBreaker:
    """Opens after failures in a row, and lets one caller probe once a cool-down is over.

    A model that cannot be loaded opens it at once; a full queue says nothing about the model. Each
    probe that fails doubles the cool-down, up to its longest; a success closes it, whoever's it
    is. *on_change* is called with each new state and the error behind it, None where there is
    none, in the thread of the caller that brought it about. *clock* gives seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[State, BaseException | None], None] | None = None,
    ) -> None:
        self.name = name
        self.on_change = on_change
        self._clock = clock
        # The garbage collector ends abandoned calls wherever it comes to run, in here too.
        self._lock = threading.RLock()
        self._state = State.CLOSED
        self._failures = 0
        self._cool_down_s = COOL_DOWN_S
        self._until = 0.0
        # Weakly: one that Ctrl-C has lost must not keep others out for ever.
        self._probe: weakref.ref[Permit] | None = None
        self._reason = ""

    @property
    def state(self) -> State:
        """The state as the last caller left it."""
        return self._state

    @property
    def refuses(self) -> bool:
        """Whether `admit` would refuse now."""
        with self._lock:
            return self._refuses()

    def admit(self) -> Permit | None:
        """Let a caller that has somebody else to ask through, or refuse it."""
        with self._lock:
            if self._refuses():
                return None
            permit = Permit(self)
            changed = self._state is State.OPEN
            if self._state is not State.CLOSED:
                self._state, self._probe = State.HALF_OPEN, weakref.ref(permit)
        if changed:
            logger.debug("%s is asked again, by one caller", self.name)
            self._tell(State.HALF_OPEN, None)
        return permit

    def watch(self) -> Permit:
        """Let a caller through that has nobody else to ask; what it meets counts all the same."""
        return Permit(self)

    def refusal(self) -> ScoringError:
        """Return what a caller is told that was refused and got no answer elsewhere."""
        with self._lock:
            left = max(0.0, self._until - self._clock())
            reason = self._reason
        return ScoringError(
            f"{self.name} was not asked, for it failed before ({reason}); it is asked again in "
            f"{left:.1f} s",
            retryable=True,
        )

    def settle(self, permit: Permit, *, answered: bool, error: BaseException | None) -> None:
        """Take in how a *permit* ended; `Permit` calls this."""
        weight = 0 if error is None else _weight(error)
        with self._lock:
            before = self._state
            probes = self._probe is not None and self._probe() is permit
            if probes or answered:
                self._probe = None
            if answered:
                self._state, self._failures = State.CLOSED, 0
                self._cool_down_s = COOL_DOWN_S
            elif weight and (probes or before is State.CLOSED):
                self._failures += weight
                if probes or self._failures >= FAILURES_TO_OPEN:
                    self._open(error)
            after, wait_s = self._state, self._until - self._clock()
        if after is before:
            return
        if after is State.OPEN:
            logger.warning(
                "%s fails (%s); callers with a fallback get it for %.0f s",
                self.name,
                self._reason,
                wait_s,
            )
        else:
            logger.info("%s answers again", self.name)
        self._tell(after, error)

    def _refuses(self) -> bool:
        if self._state is State.OPEN:
            return self._clock() < self._until
        return (
            self._state is State.HALF_OPEN and self._probe is not None and self._probe() is not None
        )

    def _open(self, error: BaseException | None) -> None:
        self._state = State.OPEN
        self._until = self._clock() + self._cool_down_s
        self._cool_down_s = min(LONGEST_COOL_DOWN_S, self._cool_down_s * _GROWTH)
        # In words: an error would keep the frames of its caller alive, texts and all.
        self._reason = "" if error is None else f"{type(error).__name__}: {first_line(error)}"

    def _tell(self, state: State, error: BaseException | None) -> None:
        if self.on_change is None:
            return
        try:
            self.on_change(state, error)
        # An observer may raise anything; the call that is under way is not to blame.
        except Exception:
            logger.exception("telling of the circuit breaker of %s failed", self.name)


def _weight(error: BaseException) -> int:
    """How many failures an error counts for: 0 where it says nothing about the model."""
    if isinstance(error, ModelLoadError | MissingExtraError):
        return FAILURES_TO_OPEN
    if isinstance(error, PluginError):
        return 0
    return int(isinstance(error, ScoringError | RerankTimeoutError))
