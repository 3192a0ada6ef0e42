"""What observers are told of a call: who answered, how it ended, where its time went."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import (
    ClosedError,
    ConfigError,
    InputError,
    QueueFullError,
    RerankTimeoutError,
)
from rerank_plugins.events import RequestEvent
from rerank_plugins.observing import tell
from rerank_plugins.stages import StageClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.jobs import Job

_RAISED: Final = (
    (RerankTimeoutError, "timeout"),
    (QueueFullError, "queue_full"),
    (ClosedError, "closed"),
    ((InputError, ConfigError), "invalid"),
    (Exception, "error"),
)


class Report:
    """Follows one call through its attempts: the first, and those of a fallback chain.

    *job* is that of the first, None where the arguments did not come that far.
    """

    __slots__ = ("_asked", "_began", "_clock", "_error", "_falls_back", "_job", "_model")

    def __init__(self, model: str, job: Job | None) -> None:
        self._model = model
        self._job = job
        self._falls_back = False
        self._asked: list[str] = []
        self._error = ""
        self._began = time.time()
        self._clock = StageClock()

    def attempt(self, job: Job, *, falls_back: bool = False) -> None:
        """Note that the call is tried with *job* now."""
        if self._job is not None:
            # A thread may still be at the one before.
            self._job.clock = None
        self._job, self._falls_back, self._asked = job, falls_back, []
        self._clock.wait("queue")
        job.clock = self._clock

    def asked(self, scorer: str) -> None:
        """Note whom this attempt asks."""
        self._asked.append(scorer)

    def failed(self, error: BaseException) -> None:
        """Note what came of an attempt: the first counts, for the others are asked because of it.

        By its name: an error holds frames, and they texts.
        """
        self._error = self._error or type(error).__name__

    def event(self, raised: BaseException | None) -> RequestEvent:
        """Return what is told of a call that has ended, *raised* being what it raised."""
        stages = self._clock.end()
        outcome = "fallback" if self._falls_back else "ok"
        if raised is not None:
            self._error = type(raised).__name__
            # What is no Exception is a caller that went away, however it did so.
            words = (word for kind, word in _RAISED if isinstance(raised, kind))
            outcome = next(words, "cancelled")
        answered = () if raised is not None else self._asked
        return RequestEvent(
            model=self._model,
            scorer=",".join(dict.fromkeys(answered)),
            outcome=outcome,
            pairs=0 if self._job is None else len(self._job.pairs),
            cached=0 if self._job is None else sum(self._job.cached),
            tokens=self._clock.tokens,
            started_s=self._began,
            duration_s=sum(astuple(stages)),
            stages=stages,
            error="" if outcome == "ok" else self._error,
        )


@contextmanager
def reported(config: RerankConfig, job: Job | None = None) -> Iterator[Report | None]:
    """Tell the observers of *config*, if any, of the call that is served in here, however it ends.

    They are told in the caller's own thread or task, where its trace is.
    """
    if not config.observers:
        yield None
        return
    report = Report(config.model, job)
    try:
        yield report
    except BaseException as exc:
        tell(config.observers, report.event(exc))
        raise
    tell(config.observers, report.event(None))


@contextmanager
def reported_if_refused(config: RerankConfig) -> Iterator[None]:
    """Tell the observers of *config* of a call whose arguments, checked in here, are wrong."""
    try:
        yield
    except Exception as exc:
        if config.observers:
            tell(config.observers, Report(config.model, None).event(exc))
        raise
