"""One scorer with its cache and its queue: what equal configurations share."""

from __future__ import annotations

import ctypes
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from rerank_plugins.breaker import CircuitBreaker
from rerank_plugins.cache import PairCache
from rerank_plugins.dispatcher import Dispatcher
from rerank_plugins.errors import (
    ClosedError,
    ConfigError,
    RerankError,
)
from rerank_plugins.home import EXIT_WAIT_S
from rerank_plugins.jobs import Job
from rerank_plugins.observing import Audience
from rerank_plugins.opening import Opener, ReplicaOpener
from rerank_plugins.options import WhenFull
from rerank_plugins.protocols import takes_instruction
from rerank_plugins.results import EngineStats
from rerank_plugins.scoring import Counter
from rerank_plugins.submission import Submission
from rerank_plugins.tiers.shared import SharedStats
from rerank_plugins.watching import BatchWatch, tell_switch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from rerank_plugins.protocols import AnyScorer
    from rerank_plugins.tiers.shared import SharedCache


class Engine:
    """Look up → encode → submit, for one scorer and its replicas.

    The scorer is opened at first use, for whichever thread comes first; a failed opening is
    reported to its caller and tried again by the next. *more_replicas* open further copies of it,
    one each. A copy is opened, entered and closed in a thread of its own, its `Home`. Where it
    *reopens*, a scorer whose worker died is closed and opened again.
    """

    def __init__(
        self,
        name: str,
        open_scorer: Callable[[], AnyScorer],
        *,
        cache_entries: int,
        batch_tokens: int | None,
        queue_tokens: int,
        max_wait_s: float = 0.0,
        make_shared: Callable[[], SharedCache] | None = None,
        more_replicas: Sequence[Callable[[], AnyScorer]] = (),
        reopens: bool = True,
    ) -> None:
        self.name = name
        self._openers = (open_scorer, *more_replicas)
        self._cache_entries = cache_entries
        self._batch_tokens = batch_tokens
        self._queue_tokens = queue_tokens
        self._max_wait_s = max_wait_s
        self._make_shared = make_shared
        self._reopens = reopens
        self._closed = False
        self._requests = self._fallbacks = 0
        self.audience = Audience()
        self._start_afresh()

    def _start_afresh(self) -> None:
        told = partial(tell_switch, self.audience, self.name)
        self.breaker = CircuitBreaker(self.name, on_change=told)
        self._shared = self._make_shared() if self._make_shared is not None else None
        share = self._shared.keep if self._shared is not None else None
        self._cache = PairCache(self._cache_entries, share=share)
        self._counter = Counter()
        # A signal handler may close the engine in the middle of an opening by the same thread.
        self._opening = threading.RLock()
        # Never held for long, unlike the one above: an event loop may take it.
        self._counting = threading.Lock()
        self._open: Dispatcher | None = None
        self._replicas = ReplicaOpener(
            self.name, self._openers, self.audience, closes=self._reopens
        )
        self.opener = Opener(self.name, self.scorer)
        self._instructed = False
        self._threads: dict[bool, ThreadPoolExecutor] = {}

    def before_fork(self) -> Callable[[], None]:
        """Wait until nothing is half written, for a while; returns what is due in the parent."""
        return self._shared.before_fork() if self._shared is not None else _nothing

    def after_fork(self) -> None:
        """Begin again in a child process: threads, and locks they held, stayed in the parent."""
        # Never freed: a native scorer would wait for threads of its own that are not here.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._open))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._shared))
        self._start_afresh()

    def threads(self, *, may_block: bool = False) -> ThreadPoolExecutor:
        """Threads that clean and encode for callers on an event loop; they end with `close`.

        Few, where they compute: each more takes the interpreter from the loop for longer. Many,
        where they run functions of the user's that *may_block*.
        """
        cores = os.cpu_count() or 1
        with self._counting:
            self._check_open()
            if may_block not in self._threads:
                self._threads[may_block] = ThreadPoolExecutor(
                    max_workers=min(32, cores + 4) if may_block else min(4, cores),
                    thread_name_prefix=f"rerank-plugins {self.name}",
                )
            return self._threads[may_block]

    @property
    def may_block(self) -> bool:
        """Whether looking pairs up takes more than a look into memory."""
        return self._shared is not None

    @property
    def opened(self) -> bool:
        """Whether the scorer is open."""
        return self._open is not None

    def count_fallback(self) -> None:
        """Note that somebody else is asked for what this engine was to answer."""
        with self._counting:
            self._fallbacks += 1

    def scorer(self) -> AnyScorer:
        """Return the scorer, opening it first if need be.

        Raises:
            ClosedError: the engine was closed.
            ModelLoadError, MissingExtraError: the scorer cannot be opened.
        """
        return self._opened()[0]

    def takes_instruction(self) -> bool:
        """Whether the scorer can be told what to look for; it is opened as by `scorer`."""
        self._opened()
        return self._instructed

    def submit(
        self,
        job: Job,
        query: str,
        documents: Iterator[tuple[int, str]],
        *,
        salt: str = "",
        instruction: str | None = None,
        when_full: WhenFull = WhenFull.RAISE,
    ) -> None:
        """Do what `submitting` does, and wait for room in the caller's thread.

        Raises:
            TimeoutError: the job's deadline passed before there was any.
        """
        steps = self.submitting(
            job, query, documents, salt=salt, instruction=instruction, when_full=when_full
        )
        for room in steps:
            room.result(job.seconds_left)

    def submitting(
        self,
        job: Job,
        query: str,
        documents: Iterator[tuple[int, str]],
        *,
        salt: str = "",
        instruction: str | None = None,
        when_full: WhenFull = WhenFull.RAISE,
    ) -> Iterator[Future[None]]:
        """Fill *job* from the cache and queue what is missing, chunk by chunk.

        *documents* gives ``(place, text)``, the cleaned text for ``job.pairs[place]``. *salt* names
        what changed the texts on their way here, and becomes part of each key, as *instruction*
        does where it is not the scorer's own; None is that. Where there is no room in the queue,
        gives a future that is to be waited for, by whatever means, before it is asked to go on: a
        request that has begun waits its turn, and so does a new one unless *when_full* is to raise.
        Ends when everything is queued; failures reach the job's future.
        """
        if id(self) not in job.asked:
            job.asked.add(id(self))
            with self._counting:
                self._requests += 1
        try:
            submission = self._submission(job, query, salt, instruction)
            yield from submission.steps(documents, when_full)
        except RerankError as exc:
            job.fail(exc)

    def warm_up(self, instruction: str | None = None) -> None:
        """Open the model and let each replica score one pair.

        Raises:
            ModelLoadError, MissingExtraError, ScoringError, ClosedError: it cannot.
        """
        job = Job(len(self._openers))
        submission = self._submission(job, "warm up", "", instruction)
        for number in range(len(self._openers)):
            # A text of its own for each, or the pair cache would answer all but the first.
            submission.add([(number, f"warm up {number}")], errand_of=number)
        job.future.result()

    def _submission(self, job: Job, query: str, salt: str, instruction: str | None) -> Submission:
        dispatcher = self._opened()[1]
        told = instruction if self._instructed else None
        return Submission(
            dispatcher, self._cache, self._shared, job, query, salt=salt, instruction=told
        )

    def stats(self) -> EngineStats:
        """Return the counters as they are now."""
        cache = self._cache.stats()
        shared = self._shared.stats() if self._shared is not None else SharedStats()
        opened = self._open
        budgets = opened.budgets if opened is not None else []
        done = self._counter.total
        return EngineStats(
            scorer=self.name,
            requests=self._requests,
            pairs_scored=done.pairs_scored,
            pairs_joined=cache.joined,
            pairs_failed=cache.failed,
            pairs_dropped=done.pairs_dropped,
            batches=done.batches,
            tokens_scored=done.tokens_scored,
            tokens_padded=done.tokens_padded,
            tokens_waiting=opened.queue.tokens if opened is not None else 0,
            out_of_memory=done.out_of_memory,
            workers_replaced=done.workers_replaced,
            replicas=len(budgets),
            batch_tokens=min(budgets, default=0),
            cache_entries=cache.entries,
            cache_hits=cache.hits,
            cache_misses=cache.misses,
            cache_evictions=cache.evictions,
            shared_hits=cache.shared,
            shared_errors=shared.errors,
            shared_skipped=shared.skipped,
            fallbacks=self._fallbacks,
        )

    def clear_cache(self) -> None:
        """Forget every logit of this process; what is shared with others stays."""
        self._cache.clear()

    def close(self, *, wait: bool = True) -> Dispatcher | None:
        """Fail what waits, end the threads and free the scorer; closing twice is one closing.

        Returns what may still be at it, for whoever did not *wait*: its own ``close`` does.
        """
        self._closed = True
        # An opening that is under way ends first, unless it never does or a finalizer runs in its
        # own thread: it is told above, and closes what it opened.
        locked = not self._replicas.at_home and self._opening.acquire(timeout=EXIT_WAIT_S)
        try:
            opened, self._open = self._open, None
        finally:
            if locked:
                self._opening.release()
        with self._counting:
            threads, self._threads = self._threads, {}
        if opened is not None:
            opened.close(wait=wait)
        if self._shared is not None:
            # After the batches that ran, whose pairs are still to be written.
            self._shared.close(wait=wait)
        for pool in threads.values():
            # What waits in there still runs, to tell its caller that the engine is closed.
            pool.shutdown(wait=False)
        if wait:
            self._replicas.wait()
        return opened

    def _opened(self) -> tuple[AnyScorer, Dispatcher]:
        """Return the scorer that encodes, and the queue; both are opened first if need be."""
        opened = self._open
        if opened is None or opened.dead:
            with self._opening:
                self._check_open()
                opened = self._open
                if opened is None or opened.dead:
                    if self._shared is not None:
                        self._shared.open()
                    opened = self._open_replicas()
                    if self._closed:
                        opened.close()
                    self._check_open()
                    self._instructed = takes_instruction(opened.scorer)
                    self._open = opened
        return opened.scorer, opened

    def _open_replicas(self) -> Dispatcher:
        with self._replicas.opened() as scorers:
            first = scorers[0]
            return Dispatcher(
                scorers,
                self._replicas.homes,
                self._cache,
                BatchWatch(self.audience, self.name, self._cache),
                batch_tokens=self._batch_tokens or _positive(first.batch_tokens, first),
                queue_tokens=self._queue_tokens,
                max_wait_s=self._max_wait_s,
                counter=self._counter,
                reopen=partial(self._replicas.reopened, first) if self._reopens else None,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the reranker for {self.name!r} is closed; open a new one")


def _nothing() -> None:
    """Nothing is due."""


def _positive(batch_tokens: object, scorer: AnyScorer) -> int:
    if not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ConfigError(
            f"the scorer {scorer.name!r} has batch_tokens {batch_tokens!r}, no int of at least 1"
        )
    return batch_tokens
