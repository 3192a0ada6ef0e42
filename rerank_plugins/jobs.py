"""Who waits for which pairs: a job per call, a ticket per distinct pair on its way."""

from __future__ import annotations

import contextlib
import operator
import threading
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from rerank_plugins.errors import RerankTimeoutError
from rerank_plugins.models.windows import WindowedPair
from rerank_plugins.options import Priority

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rerank_plugins.protocols import EncodedPair, SharedPrefix
    from rerank_plugins.results import Window
    from rerank_plugins.stages import StageClock, Wait, Work


class CachedPair(NamedTuple):
    """What is kept of a scored pair; ``tokens`` is its length as it would cost alone."""

    logit: float
    truncated: bool
    window: Window | None = None
    tokens: int = 0


class Job:
    """One caller's wait for the logits of some of its texts.

    ``pairs[i]`` is the result for the caller's *i*-th document or pair. ``future`` is done once
    all of them are there, or with the first error. A job that is over, for whatever reason, wants
    nothing more: what only it waited for is dropped when a batch is formed. ``begun`` says that
    some of it was admitted to a queue, so that the rest waits for room and is not refused;
    ``asked`` holds the `id` of each engine that counted it as a request. After ``deadline`` (of
    `time.monotonic`, None for never) it is over, whoever still waits. ``clock`` is there where an
    observer wants to hear of the call.
    """

    __slots__ = (
        "_argument",
        "_lock",
        "_remaining",
        "asked",
        "begun",
        "cached",
        "clock",
        "deadline",
        "future",
        "pairs",
        "priority",
    )

    def __init__(
        self,
        size: int,
        *,
        argument: str = "documents",
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
    ) -> None:
        self._argument = argument
        self.priority = priority
        self.deadline = deadline
        self.pairs: list[CachedPair | None] = [None] * size
        self.cached = [False] * size
        self.begun = False
        self.asked: set[int] = set()
        self.clock: StageClock | None = None
        self.future: Future[None] = Future()
        self._remaining = size
        self._lock = threading.Lock()
        self.settle()

    @property
    def waiting(self) -> bool:
        """Whether somebody still wants the result."""
        if self.future.done():
            return False
        return self.deadline is None or time.monotonic() < self.deadline

    @property
    def seconds_left(self) -> float | None:
        """Seconds until its deadline, 0 when that has passed; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def anew(self) -> Job:
        """Return a job of the same places with nothing delivered."""
        return Job(len(self.pairs), argument=self._argument, priority=self.priority)

    def where(self, place: int) -> str:
        """Name a place by argument and index, for an error message."""
        return f"{self._argument}[{place}]"

    def deliver(self, place: int, pair: CachedPair, *, cached: bool = False) -> None:
        """Fill one place; a `settle` is owed, outside any lock, since it may run callbacks."""
        with self._lock:
            self.pairs[place] = pair
            self.cached[place] = cached
            self._remaining -= 1

    def settle(self) -> None:
        """Wake the caller if every place is filled, and it has not gone."""
        if self._remaining == 0:
            self._stop_waiting()
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Raise *error* in the caller, unless it has gone or failed already."""
        self._stop_waiting()
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def cancel(self) -> None:
        """Give up waiting."""
        self.future.cancel()

    def work(self, stage: Work | None) -> None:
        """Say what its caller's thread works on from now on, where there is a clock to tell."""
        # One look: a caller that goes on to a fallback takes the clock away.
        if (clock := self.clock) is not None:
            clock.work(stage)

    def wait(self, stage: Wait) -> None:
        """Say what its caller waits for from now on, where there is a clock to tell."""
        if (clock := self.clock) is not None:
            clock.wait(stage)

    def note_tokens(self, pieces: Iterable[Piece]) -> None:
        """Count what was encoded for its caller, where there is a clock to tell."""
        if (clock := self.clock) is not None:
            clock.tokens += sum(piece.tokens for piece in pieces)

    def _stop_waiting(self) -> None:
        # Before the caller is woken, which may put the clock to its next use.
        if not self.future.done():
            self.wait("finish")

    def delivered(self) -> list[CachedPair]:
        """Return every pair of a job that succeeded."""
        pairs = [pair for pair in self.pairs if pair is not None]
        if len(pairs) != len(self.pairs):
            raise AssertionError("a job ended well with pairs missing")
        return pairs


class Waiter(NamedTuple):
    """Who waits for a pair, and as which of its documents."""

    job: Job
    place: int

    @property
    def where(self) -> str:
        """The argument and index, for an error message."""
        return self.job.where(self.place)


@dataclass(eq=False, slots=True)
class Ticket:
    """A distinct pair on its way through the scorer, and who waits for it.

    ``settled`` says that it was answered, failed or dropped, ``begun`` that a batch with some of it
    has begun and that somebody watches; it is interactive once one of those who wait for it is. All
    are set by the pair cache, under its lock.
    """

    key: bytes
    priority: Priority = Priority.INTERACTIVE
    waiters: list[Waiter] = field(default_factory=list)
    settled: bool = False
    begun: bool = False
    _windowed: WindowedPair[EncodedPair] | None = None
    _truncated: bool = False
    _tokens: int = 0
    _logits: dict[int, float] = field(default_factory=dict)

    def take(self, encoded: EncodedPair | WindowedPair[EncodedPair]) -> list[Piece]:
        """Return what there is to score: the pair itself, or each window of a long document.

        What is wrong with an encoded pair fails here, in its caller's thread.
        """
        windows = encoded.windows if isinstance(encoded, WindowedPair) else (encoded,)
        if not windows:
            raise ValueError("a document in no windows has no logit")
        self._truncated = bool(encoded.truncated)
        self._windowed = encoded if isinstance(encoded, WindowedPair) else None
        pieces = [Piece.of(self, place, pair) for place, pair in enumerate(windows)]
        self._tokens = sum(piece.tokens for piece in pieces)
        return pieces

    def answer(self, place: int, logit: float) -> CachedPair | None:
        """Note the logit of one piece; returns the pair's result once all of them are there."""
        if self._windowed is None:
            return CachedPair(logit, self._truncated, tokens=self._tokens)
        self._logits[place] = logit
        count = len(self._windowed.windows)
        if len(self._logits) < count:
            return None
        whole, window = self._windowed.combine([self._logits[i] for i in range(count)])
        return CachedPair(whole, self._truncated, window, self._tokens)


@dataclass(eq=False, slots=True)
class Piece:
    """What the queue holds of a ticket: its pair, or one window of it, and what that costs.

    ``own`` counts its tokens without the ``prefix`` that it shares with others. Once it is queued,
    ``order`` is its place among what waits: as `batch_order`, then by arrival. ``queued_s`` is when
    it came and ``due_s`` when its turn is, both of `time.monotonic`. ``deaths`` counts the workers
    that died with it in hand.
    """

    ticket: Ticket
    place: int
    encoded: EncodedPair
    own: int
    prefix: bytes = b""
    prefix_tokens: int = 0
    order: tuple[bytes, int, int] = (b"", 0, 0)
    queued_s: float = 0.0
    due_s: float = 0.0
    deaths: int = 0

    @classmethod
    def of(cls, ticket: Ticket, place: int, encoded: EncodedPair) -> Self:
        """Read what an encoded pair costs."""
        tokens = operator.index(encoded.tokens)
        prefix: SharedPrefix | None = getattr(encoded, "prefix", None)
        if prefix is None:
            return cls(ticket, place, encoded, max(1, tokens))
        shared = operator.index(prefix.tokens)
        return cls(ticket, place, encoded, max(1, tokens - shared), bytes(prefix.key), shared)

    @property
    def tokens(self) -> int:
        """Its length, as it would cost alone."""
        return self.own + self.prefix_tokens


def deadline_after(timeout_s: float | None) -> float | None:
    """Return the `time.monotonic` at which *timeout_s* seconds from now are over."""
    return None if timeout_s is None else time.monotonic() + timeout_s


def check_deadline(deadline: float | None) -> None:
    """Raise `RerankTimeoutError` once *deadline* has passed."""
    if deadline is not None and time.monotonic() >= deadline:
        raise RerankTimeoutError("the deadline passed while texts were cleaned")
