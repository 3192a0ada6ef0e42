"""One query on its way into the queue: look up → encode → submit, chunk by chunk."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from rerank_plugins.cache import pair_key
from rerank_plugins.errors import ClosedError, InputError, RerankError, ScoringError, words_of
from rerank_plugins.options import Priority, WhenFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from rerank_plugins.cache import PairCache
    from rerank_plugins.dispatcher import Dispatcher
    from rerank_plugins.jobs import CachedPair, Job, Piece, Ticket, Waiter
    from rerank_plugins.protocols import AnyScorer, EncodedPair, InstructedScorer
    from rerank_plugins.room import Turn
    from rerank_plugins.tiers.shared import SharedCache

CHUNK_PAIRS = 64
"""Pairs encoded at a time, so that the model works on one chunk while the next is encoded."""


class Submission:
    """Fills *job* with the logits of *query* and some documents.

    *salt* becomes part of each key, and *instruction* does where it is not the scorer's own.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        cache: PairCache,
        shared: SharedCache | None,
        job: Job,
        query: str,
        *,
        salt: str,
        instruction: str | None,
    ) -> None:
        scorer = dispatcher.scorer
        encode, told = _told(scorer, instruction)
        self._dispatcher = dispatcher
        self._queue = dispatcher.queue
        self._cache = cache
        self._shared = shared
        self._job = job
        self._scorer = scorer.name
        self._encode: Callable[[Sequence[str]], Sequence[EncodedPair]] = partial(encode, query)
        self._prefix = f"{scorer.identity}\n{salt}{told}".encode()
        self._query = query.encode()

    def steps(
        self, documents: Iterator[tuple[int, str]], when_full: WhenFull
    ) -> Iterator[Future[None]]:
        """Do it for all *documents*; gives what is to be waited for where there is no room.

        Raises:
            QueueFullError: there is none for a new request, and *when_full* is to raise.
        """
        job = self._job
        while job.waiting and (chunk := list(islice(documents, CHUNK_PAIRS))):
            job.work("look_up")
            keys = self._keys(chunk)
            known = self._known(keys)
            turn: Turn | None = None
            if self._queue.crowded and not self._cache.covers(keys, known):
                if when_full is WhenFull.RAISE and not job.begun:
                    self._queue.refuse_if_crowded()
                elif turn := self._queue.turn_for(job):
                    job.work(None)
                    yield turn.come
                    job.work("look_up")
                    # Its turn went with the job, if that is over.
                    if job.future.done():
                        return
            job.begun = True
            try:
                self._fill(keys, chunk, known)
            finally:
                if turn is not None:
                    self._queue.leave(turn)
            job.work("clean")

    def add(self, chunk: Sequence[tuple[int, str]], *, errand_of: int) -> None:
        """Do it for a few documents at once, for replica *errand_of* to score."""
        self._fill(self._keys(chunk), chunk, {}, errand_of)

    def _keys(self, chunk: Sequence[tuple[int, str]]) -> list[bytes]:
        return [pair_key(self._prefix, self._query, text.encode()) for _, text in chunk]

    def _known(self, keys: Sequence[bytes]) -> Mapping[bytes, CachedPair]:
        """Return what the shared cache has of a chunk; nothing is claimed while it is asked."""
        if self._shared is None or not (missing := self._cache.missing(keys)):
            return {}
        return self._shared.look_up(missing, self._job.seconds_left)

    def _fill(
        self,
        keys: Sequence[bytes],
        chunk: Sequence[tuple[int, str]],
        known: Mapping[bytes, CachedPair],
        errand_of: int | None = None,
    ) -> None:
        """Fill the job with what is known of a chunk, and queue the rest."""
        job = self._job
        tickets = self._cache.claim(job, keys, [place for place, _ in chunk], known)
        try:
            if job.priority is Priority.INTERACTIVE and (promoted := self._cache.promote(keys)):
                self._queue.promote(promoted)
            if tickets:
                job.work("encode")
                texts = [chunk[i][1] for i in tickets]
                pieces = self._encoded(texts, list(tickets.values()))
                job.note_tokens(pieces)
                self._hand_in(pieces, errand_of)
        except BaseException as exc:
            # Ctrl-C comes anywhere, and others may wait for these tickets.
            self._cache.fail(tickets.values(), partial(_queueing_error, cause=exc))
            raise

    def _encoded(self, texts: Sequence[str], tickets: Sequence[Ticket]) -> list[Piece]:
        """Encode claimed tickets; returns what is to be scored of those that could be.

        The others have failed.
        """
        try:
            encoded = self._encode(texts)
            pieces = [
                piece
                for ticket, pair in zip(tickets, encoded, strict=True)
                for piece in ticket.take(pair)
            ]
        # A plug-in may raise anything, and other requests may wait for these tickets.
        except Exception as exc:  # noqa: BLE001
            if len(tickets) == 1:
                self._cache.fail(tickets, partial(_encoding_error, scorer=self._scorer, cause=exc))
                return []
        except BaseException as exc:
            self._cache.fail(tickets, partial(_encoding_error, scorer=self._scorer, cause=exc))
            raise
        else:
            return pieces
        return [
            piece
            for ticket, text in zip(tickets, texts, strict=True)
            for piece in self._encoded([text], [ticket])
        ]

    def _hand_in(self, pieces: Sequence[Piece], errand_of: int | None) -> None:
        """Queue encoded tickets; where that cannot be done, they fail."""
        try:
            self._dispatcher.submit(pieces, errand_of=errand_of)
        except BaseException as exc:
            tickets = [piece.ticket for piece in pieces]
            self._cache.fail(tickets, partial(_queueing_error, cause=exc))
            if not isinstance(exc, RerankError):
                raise


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
        return ClosedError(words_of(cause))
    error = ScoringError(f"pairs could not be queued: {words_of(cause)}", retryable=True)
    error.__cause__ = cause
    return error


def _encoding_error(waiter: Waiter, *, scorer: str, cause: BaseException) -> RerankError:
    if isinstance(cause, InputError):
        return type(cause)(f"{waiter.where}: {words_of(cause)}")
    error = ScoringError(
        f"{scorer} could not encode {waiter.where}: {type(cause).__name__}: {words_of(cause)}",
        retryable=not isinstance(cause, Exception),
    )
    error.__cause__ = cause
    return error
