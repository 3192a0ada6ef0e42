"""One try of a call after another: who is asked, until when, and what a failure says."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Self

from rerank_plugins.errors import (
    ClosedError,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelLoadError,
    PluginError,
    QueueFullError,
    RerankError,
    RerankTimeoutError,
    ScoringError,
    first_line,
)
from rerank_plugins.jobs import deadline_after
from rerank_plugins.options import LEXICAL, RETRIEVAL_ORDER
from rerank_plugins.screening import NOT_SCORED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from rerank_plugins.breaker import Permit
    from rerank_plugins.engine import Engine
    from rerank_plugins.requests import Call, Group

RESERVED_SHARE: Final = 0.1
"""Share of ``timeout_s`` that is kept for the fallback: the model should have nearly all of it."""

LONGEST_RESERVE_S: Final = 1.0
"""More than this is never kept: the embedded model ranks some hundred documents in it."""

LEXICAL_GRACE_S: Final = 1.0
"""What the lexical scorer has in any case: thousands of documents take it no longer."""

_FALLS_BACK = (ModelLoadError, MissingExtraError, ScoringError, QueueFullError, RerankTimeoutError)
"""What is answered by somebody else; any other error is the caller's own, or a closing."""


class Attempt:
    """One try of a call, on the engines that its queries are routed to or on one of the chain.

    As a context it takes in how the try ended. An error after which the next of the chain may be
    asked goes no further and is kept in ``error``; ``engines`` are those that owed the answer.
    ``refused`` says that a circuit breaker let nobody through.
    """

    def __init__(
        self,
        call: Call,
        *,
        primary: Engine,
        timeout_s: float | None,
        deadline: float | None,
        link: str | None = None,
        falls_back: bool = False,
        counts_time: bool = True,
    ) -> None:
        self.call = call
        self.link = link
        self.deadline = deadline
        self.falls_back = falls_back
        self.error: RerankError | None = None
        self.engines: list[Engine] = []
        self.refused = False
        self._primary = primary
        self._timeout_s = timeout_s
        self._counts_time = counts_time
        # The thread that submits may be at it still when the caller has gone; and it may be that
        # thread in which the garbage collector ends an abandoned call.
        self._lock = threading.RLock()
        self._over = self._passed_over = False
        self._asked: dict[Engine, list[Group]] = {}
        self._permits: dict[Engine, Permit] = {}
        self._batches: dict[Engine, int] = {}
        self._last: Engine | None = None

    def admit(self, engine: Engine) -> None:
        """Let the call ask *engine*, which is opened in time where it could fall back.

        Raises:
            ScoringError: its circuit breaker is open.
            RerankTimeoutError: the call is over, or the scorer is not open at its deadline.
        """
        if engine in self._permits:
            return
        permit = engine.breaker.admit() if self.falls_back else engine.breaker.watch()
        if permit is None:
            self.refuse(engine)
            return
        with self._lock:
            over, self._last = self._over, engine
            if not over:
                self._permits[engine] = permit
        if over:
            permit.release()
            raise RerankTimeoutError("the call is over")
        if self.falls_back and self.deadline is not None and not engine.opened:
            engine.opener.wait(self.deadline)

    def refuse(self, engine: Engine) -> None:
        """Raise what a caller is told whose *engine* has an open circuit breaker."""
        self._last, self.refused = engine, True
        raise engine.breaker.refusal()

    def pass_over(self, engine: Engine, reason: str) -> None:
        """Leave *engine* unasked, for a *reason* that is no fault of it; raises `ScoringError`."""
        with self._lock:
            self._last, self._passed_over = None, True
            # Once the try is over, whoever ended it gives the permits back.
            permit = None if self._over else self._permits.pop(engine, None)
        if permit is not None:
            permit.release()
        raise ScoringError(reason)

    def ask(self, engine: Engine, group: Group) -> None:
        """Note that *engine* is to answer *group*."""
        batches = engine.stats().batches
        with self._lock:
            if not self._over:
                self._asked.setdefault(engine, []).append(group)
                self._batches.setdefault(engine, batches)

    def left_s(self) -> float | None:
        """Return the seconds until its deadline, None where it has none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.call.job.cancel()
        late = isinstance(error, TimeoutError)
        if late:
            error = RerankTimeoutError(f"no answer within timeout_s={self._timeout_s}")
        with self._lock:
            self._over = True
        self._settle(error)
        if isinstance(error, RerankError) and self._may_go_on(error):
            # Its frames hold this attempt, which would hold them: a ring of texts.
            self.error = error.with_traceback(None)
            return True
        if late and error is not None:
            raise error from None
        return False

    def _settle(self, error: BaseException | None) -> None:
        """Tell the circuit breakers."""
        if error is None:
            for engine, permit in self._permits.items():
                if self._has_scored(engine):
                    permit.succeed()
                else:
                    permit.release()
            return
        self.engines = self._owing(error)
        blamed = self._blamed(error)
        for engine in blamed:
            met = error
            if self.link is not None and isinstance(error, ConfigError):
                # Nobody is told of it as a caller: it is logged, and not opened for each of them.
                met = ModelLoadError(engine.name, first_line(error))
            self._permits.pop(engine, engine.breaker.watch()).fail(met)
        for permit in self._permits.values():
            permit.release()

    def _owing(self, error: BaseException) -> list[Engine]:
        """Return the engines that gave no answer."""
        opening = isinstance(error, ModelLoadError | MissingExtraError) or self.refused
        pairs = self.call.job.pairs
        unanswered = [
            engine
            for engine, groups in self._asked.items()
            if any(pairs[place] is None for group in groups for place in group.places)
        ]
        if unanswered and not opening:
            return unanswered
        return [] if self._last is None else [self._last]

    def _blamed(self, error: BaseException) -> list[Engine]:
        """Return the engines that *error* is a failure of."""
        if self.refused or self._passed_over:
            return []
        if not isinstance(error, RerankTimeoutError):
            # Where several were asked, an error does not say whose it is.
            return self.engines if len(self.engines) == 1 else []
        if not self._counts_time:
            return []
        if not self.engines and self.link is None:
            # Its threads are all in an opening that does not end.
            self.engines = [self._primary]
        # An open one that was given nothing yet was waiting for texts, as they were cleaned.
        begun = self.call.job.begun
        late = [each for each in self.engines if begun or not each.opened]
        return [each for each in late if not self._was_at_others(each)]

    def _was_at_others(self, engine: Engine) -> bool:
        """Whether it scored all the time, but nothing of this call: busy is not dead."""
        asked_at = self._batches.get(engine)
        if asked_at is None or self._has_scored(engine):
            return False
        return engine.stats().batches > asked_at

    def _has_scored(self, engine: Engine) -> bool:
        """Whether any of its pairs is new: the cache of a dead model answers too."""
        job = self.call.job
        return any(
            not job.cached[place] and job.pairs[place] not in (None, NOT_SCORED)
            for group in self._asked.get(engine, ())
            for place in group.places
        )

    def _may_go_on(self, error: RerankError) -> bool:
        if not self.falls_back or isinstance(error, PluginError | ClosedError):
            return False
        if self.link is None:
            return isinstance(error, _FALLS_BACK)
        # What a link cannot read, the next one may; what nobody can was found before one was asked.
        return self._last is not None or not isinstance(error, InputError)


def attempts(
    call: Call, *, primary: Engine, timeout_s: float | None, chain: Sequence[str] = ()
) -> Iterator[Attempt]:
    """Give the tries of *call* in turn; whoever iterates stops at the first that answers.

    The configured model, or where a query is routed to, comes first, then *chain*, without those
    that failed. The first that is really asked has ``timeout_s`` less a reserve, further models
    what is left of it; the lexical scorer and the order as given answer even then.

    Raises:
        RerankError: of the first try, once all have failed; notes tell of the others.
    """
    deadline = deadline_after(timeout_s)
    early = _early(deadline, timeout_s) if chain else deadline
    attempt = Attempt(
        call, primary=primary, timeout_s=timeout_s, deadline=early, falls_back=bool(chain)
    )
    yield attempt
    first, asked, notes = attempt, not attempt.refused, list[str]()
    skipped = {primary.name, *(engine.name for engine in attempt.engines)}
    for link in chain:
        if link in skipped:
            continue
        until = _until(link, deadline if asked else early)
        if until is not None and until <= time.monotonic():
            notes.append(f"fallback {link!r}: no time was left for it")
            continue
        for engine in attempt.engines:
            engine.count_fallback()
        attempt = Attempt(
            call.anew(),
            primary=primary,
            timeout_s=timeout_s,
            deadline=until,
            link=link,
            falls_back=True,
            # What is left may be too little for any model.
            counts_time=not asked,
        )
        yield attempt
        notes.append(f"fallback {link!r}: {_in_words(attempt.error)}")
        asked = asked or not attempt.refused
    raise _exhausted(first, notes)


def _exhausted(first: Attempt, notes: Sequence[str]) -> RerankError:
    error = first.error
    if error is None:
        raise AssertionError("a call that was answered asks nobody else")
    for note in notes:
        error.add_note(note)
    return error


def _in_words(error: BaseException | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {first_line(error)}"


def _early(deadline: float | None, timeout_s: float | None) -> float | None:
    if deadline is None or timeout_s is None:
        return None
    return deadline - min(LONGEST_RESERVE_S, RESERVED_SHARE * timeout_s)


def _until(link: str, deadline: float | None) -> float | None:
    """Return when *link* is to have answered; None is no bound."""
    if deadline is None or link == RETRIEVAL_ORDER:
        return None
    return max(deadline, time.monotonic() + LEXICAL_GRACE_S) if link == LEXICAL else deadline
