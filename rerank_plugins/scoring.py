"""One batch through a scorer: answers to whoever waits, failures to whom they concern."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from rerank_plugins.batching import Budget, batch_cost
from rerank_plugins.errors import (
    OutOfMemoryError,
    QueueFullError,
    RerankError,
    RerankTimeoutError,
    ScoringError,
    is_out_of_memory,
    words_of,
)
from rerank_plugins.protocols import takes_deadline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rerank_plugins.cache import PairCache
    from rerank_plugins.jobs import CachedPair, Piece, Ticket, Waiter
    from rerank_plugins.protocols import AnyScorer, DeadlineScorer
    from rerank_plugins.watching import BatchWatch


class Counts(NamedTuple):
    """What happened behind the queue; units as in `EngineStats`."""

    pairs_scored: int = 0
    pairs_dropped: int = 0
    batches: int = 0
    tokens_scored: int = 0
    tokens_padded: int = 0
    out_of_memory: int = 0
    workers_replaced: int = 0


class Counter:
    """Adds up what happened, in any thread."""

    def __init__(self) -> None:
        self._total = Counts()
        self._lock = threading.Lock()

    def add(self, more: Counts) -> None:
        """Count *more*."""
        with self._lock:
            self._total = Counts._make(map(sum, zip(self._total, more, strict=True)))

    @property
    def total(self) -> Counts:
        """Everything so far."""
        return self._total


class BatchScoring:
    """Scores batches with one scorer; results and failures leave through the pair cache.

    ``budget`` is what a batch may cost on this scorer: less after one did not fit into memory.
    ``entered`` are the pieces that the scorer was last entered with: a part of a batch, maybe.
    """

    def __init__(
        self,
        scorer: AnyScorer,
        cache: PairCache,
        counter: Counter,
        budget: Budget,
        watch: BatchWatch,
        *,
        replica: int = 0,
    ) -> None:
        self.budget = budget
        self.entered: Sequence[Piece] = ()
        self._scorer = scorer
        self._cache = cache
        self._counter = counter
        self._watch = watch
        self._replica = replica
        self._padded = scorer.padded
        self._takes_deadline = takes_deadline(scorer)

    def wanted(self, batch: Sequence[Piece]) -> list[Piece]:
        """Leave out what nobody waits for any more, and count the pairs of it."""
        dropped = self._cache.drop_unwanted(piece.ticket for piece in batch)
        self._counter.add(Counts(pairs_dropped=len(dropped)))
        return [piece for piece in batch if not piece.ticket.settled]

    def score(self, batch: Sequence[Piece]) -> None:
        """Score a batch; where it fails, halve it until the guilty pair stands alone.

        What is no `Exception` passes: whoever raises that means the worker, not the batch.
        """
        failure: Exception | None = None
        try:
            with self._watch.forward(self._scorer, batch, replica=self._replica):
                logits, failures = self._forward(batch)
        # A plug-in may raise anything, and the worker must outlive it.
        except Exception as exc:  # noqa: BLE001
            failure = exc
        if failure is None:
            late = self._resolve(batch, logits, failures)
            # Somebody may have come to wait while it was given up.
            if wanted := self.wanted(late):
                self.score(wanted)
            return
        if is_out_of_memory(failure):
            self._counter.add(Counts(out_of_memory=1))
            # A pair that does not fit alone says nothing about batches.
            if len(batch) > 1:
                self.budget.cut(batch_cost(batch, padded=self._padded))
        if len(batch) == 1 or isinstance(failure, _BrokenContractError):
            self.fail(batch, failure)
            return
        # Forgotten first: an error holds the frames that hold the batch.
        failure = None
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            # Once its request has failed, the rest of it is nobody's.
            if wanted := self.wanted(part):
                self.score(wanted)

    def fail(self, pieces: Sequence[Piece], cause: BaseException) -> None:
        """Fail those who wait for *pieces*."""
        error = partial(_scoring_error, scorer=self._scorer.name, cause=cause)
        self._cache.fail([piece.ticket for piece in pieces], error)

    def _forward(self, batch: Sequence[Piece]) -> tuple[NDArray[np.float32], dict[int, Exception]]:
        """Return (pairs,) logits, and the errors that came in the places of some of them."""
        self.entered = batch
        pairs = [piece.encoded for piece in batch]
        if self._takes_deadline:
            until = _Until(self._cache, [piece.ticket for piece in batch])
            found = cast("DeadlineScorer[Any]", self._scorer).forward(pairs, until=until)
            over = until.passed
        else:
            found, over = self._scorer.forward(pairs), False
        logits, failures = np.asarray(found), dict[int, Exception]()
        if logits.shape == (len(batch),) and logits.dtype.kind == "O":
            failures = {
                i: each if over else _not_given_up(each)
                for i, each in enumerate(logits)
                if isinstance(each, Exception)
            }
            logits = np.asarray([0.0 if i in failures else each for i, each in enumerate(logits)])
        if logits.shape != (len(batch),) or logits.dtype.kind not in "fiu":
            raise _BrokenContractError(
                f"forward gave {logits.dtype} of shape {logits.shape} for {len(batch)} pairs"
            )
        return logits.astype(np.float32, copy=False), failures

    def _resolve(
        self, batch: Sequence[Piece], logits: NDArray[np.float32], failures: dict[int, Exception]
    ) -> list[Piece]:
        """Answer what was scored and fail what was not; returns what was given up."""
        answered: list[tuple[Ticket, CachedPair]] = []
        wrong: list[tuple[Piece, Exception]] = []
        for place, (piece, logit) in enumerate(zip(batch, logits, strict=True)):
            if (failure := failures.get(place)) is not None:
                wrong.append((piece, failure))
            elif not np.isfinite(logit):
                wrong.append((piece, ScoringError(f"the logit is {logit}")))
            elif pair := piece.ticket.answer(piece.place, float(logit)):
                answered.append((piece.ticket, pair))
        scored = [piece for place, piece in enumerate(batch) if place not in failures]
        cost = batch_cost(scored, padded=self._padded)
        self.budget.fitted(cost)
        padding = cost - sum(piece.tokens for piece in scored) if self._padded else 0
        counts = Counts(batches=1, tokens_scored=cost - padding, tokens_padded=padding)
        self._counter.add(counts)
        self._cache.resolve(
            answered, count=lambda pairs: self._counter.add(Counts(pairs_scored=pairs))
        )
        late = [piece for piece, error in wrong if isinstance(error, RerankTimeoutError)]
        for piece, error in wrong:
            if not isinstance(error, RerankTimeoutError):
                self.fail([piece], error)
        return late


def _scoring_error(waiter: Waiter, *, scorer: str, cause: BaseException) -> RerankError:
    own = isinstance(cause, ScoringError | QueueFullError)
    kind = "" if own else f"{type(cause).__name__}: "
    message = f"{scorer} failed on {waiter.where}: {kind}{words_of(cause)}"
    error: RerankError
    if isinstance(cause, QueueFullError):
        error = QueueFullError(message, retry_after_s=cause.retry_after_s)
    else:
        failed = OutOfMemoryError if is_out_of_memory(cause) else ScoringError
        retryable = isinstance(cause, ScoringError) and cause.retryable
        error = failed(message, retryable=retryable)
    error.__cause__ = cause
    return error


def _not_given_up(error: Exception) -> Exception:
    """Return *error* as the pair's own: somebody waits, and would without end if it came again."""
    if not isinstance(error, RerankTimeoutError):
        return error
    return ScoringError(words_of(error), retryable=True)


class _Until:
    """Says until when somebody waits for *tickets*, and remembers what it said last."""

    def __init__(self, cache: PairCache, tickets: Sequence[Ticket]) -> None:
        self._cache = cache
        self._tickets = tickets
        self._said: float | None = None

    def __call__(self) -> float | None:
        self._said = self._cache.wanted_until(self._tickets)
        return self._said

    @property
    def passed(self) -> bool:
        """Whether what was said last is over: only then may pairs be given up."""
        return self._said is not None and self._said <= time.monotonic()


class _BrokenContractError(ScoringError):
    """The scorer's answer fits no batch: no pair of it is to blame."""
