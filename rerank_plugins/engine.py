"""One scorer with its cache and its queue: what equal configurations share."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from rerank_plugins.breaker import CircuitBreaker
from rerank_plugins.cache import PairCache, pair_key
from rerank_plugins.dispatcher import EXIT_WAIT_S, Dispatcher
from rerank_plugins.errors import (
    ClosedError,
    ConfigError,
    InputError,
    RerankError,
    RerankTimeoutError,
    ScoringError,
)
from rerank_plugins.home import Home
from rerank_plugins.jobs import Job
from rerank_plugins.observing import Audience
from rerank_plugins.opening import Opener
from rerank_plugins.options import Priority, WhenFull
from rerank_plugins.protocols import takes_instruction
from rerank_plugins.results import EngineStats
from rerank_plugins.scoring import Counter
from rerank_plugins.watching import BatchWatch, tell_switch, watched_opening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from rerank_plugins.jobs import Piece, Ticket, Waiter
    from rerank_plugins.protocols import AnyScorer, EncodedPair, InstructedScorer
    from rerank_plugins.room import Turn

CHUNK_PAIRS = 64
"""Pairs encoded at a time, so that the model works on one chunk while the next is encoded."""


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
        more_replicas: Sequence[Callable[[], AnyScorer]] = (),
        reopens: bool = True,
    ) -> None:
        self.name = name
        self._openers = (open_scorer, *more_replicas)
        self._cache_entries = cache_entries
        self._batch_tokens = batch_tokens
        self._queue_tokens = queue_tokens
        self._max_wait_s = max_wait_s
        self._reopens = reopens
        self._closed = False
        self._requests = self._fallbacks = 0
        self.audience = Audience()
        self._start_afresh()

    def _start_afresh(self) -> None:
        told = partial(tell_switch, self.audience, self.name)
        self.breaker = CircuitBreaker(self.name, on_change=told)
        self._cache = PairCache(self._cache_entries)
        self._counter = Counter()
        # A signal handler may close the engine in the middle of an opening by the same thread.
        self._opening = threading.RLock()
        # Never held for long, unlike the one above: an event loop may take it.
        self._counting = threading.Lock()
        self._open: Dispatcher | None = None
        self._homes: list[Home] = []
        # Those of an opening that failed or was given up: closing what was opened, or opening yet.
        self._leaving: list[Home] = []
        self.opener = Opener(self.name, self.scorer)
        self._instructed = False
        self._threads: dict[bool, ThreadPoolExecutor] = {}

    def after_fork(self) -> None:
        """Begin again in a child process: threads, and locks they held, stayed in the parent."""
        # Never freed: a native scorer would wait for threads of its own that are not here.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._open))
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
        if not job.begun:
            with self._counting:
                self._requests += 1
        try:
            scorer, dispatcher = self._opened()
            encode, told = _told(scorer, instruction if self._instructed else None)
            prefix = f"{scorer.identity}\n{salt}{told}".encode()
            query_bytes = query.encode()
            while job.waiting and (chunk := list(islice(documents, CHUNK_PAIRS))):
                job.work("look_up")
                keys = [pair_key(prefix, query_bytes, text.encode()) for _, text in chunk]
                turn: Turn | None = None
                if dispatcher.crowded and not self._cache.covers(keys):
                    if when_full is WhenFull.RAISE and not job.begun:
                        dispatcher.refuse_if_crowded()
                    elif turn := dispatcher.turn_for(job):
                        job.work(None)
                        yield turn.come
                        job.work("look_up")
                        # Its turn went with the job, if that is over.
                        if job.future.done():
                            return
                job.begun = True
                try:
                    self._submit_chunk(dispatcher, job, keys, chunk, partial(encode, query))
                finally:
                    if turn is not None:
                        dispatcher.leave(turn)
                job.work("clean")
        except RerankError as exc:
            job.fail(exc)

    def _submit_chunk(
        self,
        dispatcher: Dispatcher,
        job: Job,
        keys: Sequence[bytes],
        chunk: Sequence[tuple[int, str]],
        encode: Callable[[Sequence[str]], Sequence[EncodedPair]],
        *,
        errand_of: int | None = None,
    ) -> None:
        """Fill *job* with what is known of a chunk, and queue the rest."""
        tickets = self._cache.claim(job, keys, [place for place, _ in chunk])
        try:
            if job.priority is Priority.INTERACTIVE and (promoted := self._cache.promote(keys)):
                dispatcher.promote(promoted)
            if tickets:
                job.work("encode")
                texts = [chunk[i][1] for i in tickets]
                name = dispatcher.scorer.name
                pieces = self._encode(name, encode, texts, list(tickets.values()))
                job.note_tokens(pieces)
                self._queue(dispatcher, pieces, errand_of)
        except BaseException as exc:
            # Ctrl-C comes anywhere, and others may wait for these tickets.
            self._cache.fail(tickets.values(), partial(_queueing_error, cause=exc))
            raise

    def warm_up(self, instruction: str | None = None) -> None:
        """Open the model and let each replica score one pair.

        Raises:
            ModelLoadError, MissingExtraError, ScoringError, ClosedError: it cannot.
        """
        scorer, dispatcher = self._opened()
        encode, told = _told(scorer, instruction if self._instructed else None)
        job = Job(len(self._openers))
        for number in range(len(self._openers)):
            # A text of its own for each, or the pair cache would answer all but the first.
            text = f"warm up {number}"
            key = pair_key(f"{scorer.identity}\n{told}".encode(), b"warm up", text.encode())
            told_encode = partial(encode, "warm up")
            chunk = [(number, text)]
            self._submit_chunk(dispatcher, job, [key], chunk, told_encode, errand_of=number)
        job.future.result()

    def _encode(
        self,
        scorer: str,
        encode: Callable[[Sequence[str]], Sequence[EncodedPair]],
        texts: Sequence[str],
        tickets: Sequence[Ticket],
    ) -> list[Piece]:
        """Encode claimed tickets; returns what is to be scored of those that could be.

        The others have failed.
        """
        try:
            encoded = encode(texts)
            pieces = [
                piece
                for ticket, pair in zip(tickets, encoded, strict=True)
                for piece in ticket.take(pair)
            ]
        # A plug-in may raise anything, and other requests may wait for these tickets.
        except Exception as exc:  # noqa: BLE001
            if len(tickets) == 1:
                self._cache.fail(tickets, partial(_encoding_error, scorer=scorer, cause=exc))
                return []
        except BaseException as exc:
            self._cache.fail(tickets, partial(_encoding_error, scorer=scorer, cause=exc))
            raise
        else:
            return pieces
        return [
            piece
            for ticket, text in zip(tickets, texts, strict=True)
            for piece in self._encode(scorer, encode, [text], [ticket])
        ]

    def _queue(
        self, dispatcher: Dispatcher, pieces: Sequence[Piece], errand_of: int | None
    ) -> None:
        """Queue encoded tickets; where that cannot be done, they fail."""
        try:
            dispatcher.submit(pieces, errand_of=errand_of)
        except BaseException as exc:
            tickets = [piece.ticket for piece in pieces]
            self._cache.fail(tickets, partial(_queueing_error, cause=exc))
            if not isinstance(exc, RerankError):
                raise

    def stats(self) -> EngineStats:
        """Return the counters as they are now."""
        cache = self._cache.stats()
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
            tokens_waiting=opened.tokens_waiting if opened is not None else 0,
            out_of_memory=done.out_of_memory,
            workers_replaced=done.workers_replaced,
            replicas=len(budgets),
            batch_tokens=min(budgets, default=0),
            cache_entries=cache.entries,
            cache_hits=cache.hits,
            cache_misses=cache.misses,
            cache_evictions=cache.evictions,
            fallbacks=self._fallbacks,
        )

    def clear_cache(self) -> None:
        """Forget every cached logit."""
        self._cache.clear()

    def close(self, *, wait: bool = True) -> Dispatcher | None:
        """Fail what waits, end the threads and free the scorer; closing twice is one closing.

        Returns what may still be at it, for whoever did not *wait*: its own ``close`` does.
        """
        self._closed = True
        # An opening that is under way ends first, so that no scorer is left open behind it. Only a
        # finalizer that runs in its own thread cannot wait for it, nor needs to: it is told above.
        at_home = any(home.here for home in (*self._homes, *self._leaving))
        with contextlib.nullcontext() if at_home else self._opening:
            opened, self._open = self._open, None
        with self._counting:
            threads, self._threads = self._threads, {}
        if opened is not None:
            opened.close(wait=wait)
        for pool in threads.values():
            # What waits in there still runs, to tell its caller that the engine is closed.
            pool.shutdown(wait=False)
        if wait:
            _wait_for(self._leaving)
        return opened

    def _opened(self) -> tuple[AnyScorer, Dispatcher]:
        """Return the scorer that encodes, and the queue; both are opened first if need be."""
        opened = self._open
        if opened is None or opened.dead:
            with self._opening:
                self._check_open()
                opened = self._open
                if opened is None or opened.dead:
                    opened = self._open_replicas()
                    if self._closed:
                        opened.close()
                    self._check_open()
                    self._instructed = takes_instruction(opened.scorer)
                    self._open = opened
        return opened.scorer, opened

    def _open_replicas(self) -> Dispatcher:
        # What an opening that was given up holds is free before another one takes as much.
        _wait_for(self._leaving)
        title = f"rerank-plugins {self.name}"
        self._homes = [Home(f"{title} {i}" if i else title) for i in range(len(self._openers))]
        opened: list[list[AnyScorer]] = [[] for _ in self._homes]
        openings: list[Future[AnyScorer]] = []
        begun = 0
        try:
            for home, open_scorer, here in zip(self._homes, self._openers, opened, strict=True):
                begun += 1
                # Noted in that thread: whoever waits here may be interrupted at any moment.
                at_home = partial(_open_into, here, open_scorer)
                openings.append(home.run(partial(copy_context().run, at_home)))
                watched_opening(self.audience, self.name, partial(_last_of, openings))
                _check_alike(opened[0][0], here[0])
            first = opened[0][0]
            return Dispatcher(
                [scorer for (scorer,) in opened],
                self._homes,
                self._cache,
                BatchWatch(self.audience, self.name, self._cache),
                batch_tokens=self._batch_tokens or _positive(first.batch_tokens, first),
                queue_tokens=self._queue_tokens,
                max_wait_s=self._max_wait_s,
                counter=self._counter,
                reopen=partial(self._reopened, first) if self._reopens else None,
            )
        except BaseException:
            self._leaving, self._homes = self._homes, []
            for home, here in zip(self._leaving, opened, strict=True):
                home.end(partial(_close_all, here) if self._reopens else None)
            # Who is interrupted does not wait for an opening to end.
            if len(openings) == begun and all(opening.done() for opening in openings):
                _wait_for(self._leaving)
            openings.clear()
            raise

    def _reopened(self, first: AnyScorer, number: int) -> AnyScorer:
        """Open replica *number* anew: one that answers as *first* did."""
        scorer = watched_opening(self.audience, self.name, self._openers[number])
        try:
            _check_alike(first, scorer)
        except ConfigError:
            scorer.close()
            raise
        return scorer

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the reranker for {self.name!r} is closed; open a new one")


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


def _wait_for(homes: Sequence[Home]) -> None:
    until = time.monotonic() + EXIT_WAIT_S
    for home in homes:
        home.join(max(0.0, until - time.monotonic()))


def _told(
    scorer: AnyScorer, instruction: str | None
) -> tuple[Callable[[str, Sequence[str]], Sequence[EncodedPair]], str]:
    """Return how *scorer* encodes with *instruction*, and what that adds to its keys."""
    own: str | None = getattr(scorer, "instruction", None)
    if instruction is None or instruction == own:
        return scorer.encode, ""
    # No name in a salt holds this character, so that nothing else adds the same.
    encode = cast("InstructedScorer[Any]", scorer).encode
    return partial(encode, instruction=instruction), f"\0{instruction}"


def _queueing_error(_: Waiter, *, cause: BaseException) -> RerankError:
    if isinstance(cause, ClosedError):
        return ClosedError(str(cause))
    error = ScoringError(f"pairs could not be queued: {cause}", retryable=True)
    error.__cause__ = cause
    return error


def _encoding_error(waiter: Waiter, *, scorer: str, cause: BaseException) -> RerankError:
    if isinstance(cause, InputError):
        return type(cause)(f"{waiter.where}: {cause}")
    error = ScoringError(
        f"{scorer} could not encode {waiter.where}: {type(cause).__name__}: {cause}",
        retryable=not isinstance(cause, Exception),
    )
    error.__cause__ = cause
    return error


def _check_alike(first: AnyScorer, scorer: AnyScorer) -> None:
    """Raise `ConfigError` where two replicas would not give the same logits."""
    if scorer.identity != first.identity:
        raise ConfigError(
            f"replicas: they must answer alike, and one is {scorer.identity!r}, another "
            f"{first.identity!r}; name devices of one kind, or set the precision"
        )


def _positive(batch_tokens: object, scorer: AnyScorer) -> int:
    if not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ConfigError(
            f"the scorer {scorer.name!r} has batch_tokens {batch_tokens!r}, no int of at least 1"
        )
    return batch_tokens


def deadline_after(timeout_s: float | None) -> float | None:
    """Return the `time.monotonic` at which *timeout_s* seconds from now are over."""
    return None if timeout_s is None else time.monotonic() + timeout_s


def check_deadline(deadline: float | None) -> None:
    """Raise `RerankTimeoutError` once *deadline* has passed."""
    if deadline is not None and time.monotonic() >= deadline:
        raise RerankTimeoutError("the deadline passed while texts were cleaned")
