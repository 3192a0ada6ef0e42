"""The shared cache of an engine: asked before pairs are scored, written to afterwards."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from rerank_plugins.home import Home
from rerank_plugins.tiers.outage import Outage
from rerank_plugins.tiers.packing import namespace, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from rerank_plugins.cache import KeyedPair
    from rerank_plugins.jobs import CachedPair
    from rerank_plugins.tiers.store import Store

T = TypeVar("T")

OPEN_WAIT_S: Final = 2.0
"""How long the opening of an engine waits for its shared cache, in seconds."""

FLUSH_WAIT_S: Final = 2.0
"""How long the closing of an engine waits for what is still to be written, in seconds."""

FORK_WAIT_S: Final = 1.0
"""How long a fork waits for what is being read or written, in seconds."""

WAITING_PAIRS: Final = 50_000
"""Pairs that may wait to be written, some 300 bytes each."""

BATCH_PAIRS: Final = 512
"""Pairs that are written at a time: other processes wait for the database meanwhile."""


class SharedStats(NamedTuple):
    """Counters of one shared cache; units as in `EngineStats`."""

    errors: int = 0
    skipped: int = 0


class SharedCache:
    """Pairs that this and other processes have scored, in what *find_store* finds.

    Whatever the store does, a caller is delayed by *timeout_s* at most, and nothing is raised: what
    cannot be asked is scored. Two threads, one that reads and one that writes, have a store each.
    *name* is that of the engine, *shown* what the log calls the store; by *clock*, in seconds, a
    store that failed is left alone for a while.
    """

    def __init__(
        self,
        name: str,
        shown: str,
        find_store: Callable[[], Callable[[], Store]],
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = f"rerank-plugins {name} shared cache"
        self._find_store = find_store
        self._timeout_s = timeout_s
        self._reads = Outage(f"reading from the shared cache {shown}", clock=clock)
        self._writes = Outage(f"writing to the shared cache {shown}", clock=clock)
        # The garbage collector may close an engine in the middle of another call of a thread.
        self._lock = threading.RLock()
        self._stats = SharedStats()
        self._pending: OrderedDict[bytes, CachedPair] = OrderedDict()
        self._writing = False
        self._hands: tuple[_Hand, _Hand] | None = None
        self._closed = False

    def open(self) -> None:
        """Find the store and try it, for a while; opening twice is one opening.

        Raises:
            MissingExtraError, ConfigError: there can be none such here.
        """
        with self._lock:
            if self._hands is not None or self._closed:
                return
            open_store = self._find_store()
            self._hands = (
                _Hand(f"{self._title} reads", open_store),
                _Hand(f"{self._title} writes", open_store),
            )
        self._ask([bytes(16)], max(OPEN_WAIT_S, self._timeout_s))

    def look_up(
        self, keys: Sequence[bytes], patience_s: float | None = None
    ) -> dict[bytes, CachedPair]:
        """Return what is known of *keys*; the caller waits for *patience_s* at most, None for all.

        Never raises, but for what interrupts the caller.
        """
        wait_s = self._timeout_s if patience_s is None else min(patience_s, self._timeout_s)
        values = self._ask(keys, wait_s) if keys else None
        if values is None:
            self._count(skipped=len(keys))
            return {}
        known, wrong = {}, 0
        for key, value in zip(keys, values, strict=False):
            pair = None if value is None else unpack(key, value)
            if pair is not None:
                known[key] = pair
            wrong += value is not None and pair is None
        if wrong:
            self._count(errors=wrong)
        return known

    def keep(self, pairs: Sequence[KeyedPair]) -> None:
        """Write *pairs* some time soon; where too many wait, those that came first are left out."""
        with self._lock:
            if self._closed or self._hands is None:
                return
            for key, pair in pairs:
                self._pending[key] = pair
                self._pending.move_to_end(key)
            excess = max(0, len(self._pending) - WAITING_PAIRS)
            for _ in range(excess):
                self._pending.popitem(last=False)
            self._count(skipped=excess)
            if not self._pending or self._writing:
                return
            self._writing = True
            _, writer = self._hands
        try:
            writer.run(partial(self._write_pending, writer))
        # The system gives no more threads: tried again with the next pairs.
        except Exception as exc:  # noqa: BLE001
            self._writing = False
            self._count(errors=1)
            self._writes.failed(exc)

    def stats(self) -> SharedStats:
        """Return the counters as they are now."""
        return self._stats

    def before_fork(self) -> Callable[[], None]:
        """Wait until no store is in use, for a while; returns what lets them go on.

        A child closes what it inherits of a database, and would undo what is half written.
        """
        held = [hand for hand in self._hands or () if hand.pause(FORK_WAIT_S)]

        def go_on() -> None:
            for hand in held:
                hand.resume()

        return go_on

    def close(self, *, wait: bool) -> None:
        """Write what is left, for a while, and let go of the store; does not wait unless told."""
        with self._lock:
            self._closed = True
            hands = self._hands or ()
        for hand in hands:
            hand.end()
        until = time.monotonic() + FLUSH_WAIT_S
        for hand in hands if wait else ():
            hand.join(max(0.0, until - time.monotonic()))

    def _ask(self, keys: Sequence[bytes], wait_s: float) -> Sequence[object] | None:
        """Return the values of *keys*, or None where the store cannot be asked or is late."""
        hands = self._hands
        if hands is None or self._closed or not self._reads.admits():
            return None
        asked: Future[Sequence[object]] | None = None
        prefix = namespace()
        try:
            asked = hands[0].run(partial(hands[0].use, partial(_read, [prefix + k for k in keys])))
            values = asked.result(wait_s)
        # A store may raise anything, and what it cannot say is scored.
        except Exception as exc:  # noqa: BLE001
            late = asked is not None and not asked.done()
            if asked is not None:
                asked.cancel()
            if late and wait_s < self._timeout_s:
                # It was its caller who had no time.
                return None
            self._count(errors=1)
            self._reads.failed(TimeoutError(f"no answer in {wait_s} s") if late else exc)
            return None
        self._reads.succeeded()
        return values

    def _write_pending(self, writer: _Hand) -> None:
        """Write until nothing is left; in the thread of *writer*."""
        while batch := self._take_batch():
            if not self._writes.admits():
                self._count(skipped=len(batch))
                continue
            try:
                writer.use(partial(_write, batch))
            # A store may raise anything, and the next pairs are tried all the same.
            except Exception as exc:  # noqa: BLE001
                self._count(errors=1, skipped=len(batch))
                self._writes.failed(exc)
            else:
                self._writes.succeeded()

    def _take_batch(self) -> list[KeyedPair]:
        """Take the newest: in turn, a store that falls behind would hold none that is asked for."""
        with self._lock:
            count = min(BATCH_PAIRS, len(self._pending))
            self._writing = count > 0
            return [self._pending.popitem() for _ in range(count)]

    def _count(self, *, errors: int = 0, skipped: int = 0) -> None:
        with self._lock:
            now = self._stats
            self._stats = SharedStats(now.errors + errors, now.skipped + skipped)


class _Hand:
    """A thread with a store of its own, opened when it is needed, and anew after a failure."""

    def __init__(self, name: str, open_store: Callable[[], Store]) -> None:
        self._home = Home(name)
        self._open_store = open_store
        self._store: Store | None = None
        self._lock = threading.RLock()
        self._in_use = threading.Lock()

    def run(self, function: Callable[[], T]) -> Future[T]:
        """Call *function* in the thread, after what was given before."""
        with self._lock:
            return self._home.run(function)

    def use(self, function: Callable[[Store], T]) -> T:
        """Call *function* with the store; in the thread alone."""
        with self._in_use:
            if self._store is None:
                self._store = self._open_store()
            try:
                return function(self._store)
            except BaseException:
                self._close()
                raise

    def pause(self, seconds: float) -> bool:
        """Keep the store from being used; whether that was to be had in *seconds*."""
        return self._in_use.acquire(timeout=seconds)

    def resume(self) -> None:
        """Let the store be used again."""
        self._in_use.release()

    def end(self) -> None:
        """End the thread after what was given."""
        self._home.end(self._close)

    def join(self, seconds: float) -> None:
        """Wait until it has ended, *seconds* at most."""
        self._home.join(seconds)

    def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()


def _read(keys: Sequence[bytes], store: Store) -> Sequence[object]:
    return store.get_many(keys)


def _write(pairs: Sequence[KeyedPair], store: Store) -> None:
    packed = ((key, pack(key, pair)) for key, pair in pairs)
    store.set_many([(namespace() + key, value) for key, value in packed if value is not None])
