"""Dispatcher and cache beside a naive model: whatever happens in whatever order, all are served."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from rerank_plugins.engine import Engine
from rerank_plugins.errors import ClosedError, QueueFullError, ScoringError
from rerank_plugins.jobs import Job
from rerank_plugins.options import Priority
from rerank_plugins.replica import DEADLY
from rerank_plugins.tiers.shared import SharedCache
from tests.scripted_scorer import HANG_S, Key, ScriptedScorer, truth, whole, window_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from rerank_plugins.cache import KeyedPair
    from rerank_plugins.testing import FakePair

QUERIES = st.sampled_from(["one", "two"])
GOOD = ["a", "b b", "c c c", "d d d d d", "e", "f", "long1", "long2"]
DOCUMENTS = st.lists(
    st.sampled_from(
        [
            "a",
            "b b",
            "c c c",
            "d d d d d",
            "e",
            "f",
            "long1",
            "long2",
            "poison",
            "nan",
            "unreadable",
        ]
    ),
    min_size=1,
    max_size=6,
)
PASSES = st.sampled_from([0, 0, 1, 2, 5, 40])
INSTRUCTIONS = st.sampled_from([None, None, "find"])
FAULTS: dict[str, Callable[[], Any]] = {
    "exception": lambda: RuntimeError("transient"),
    "retryable": lambda: ScoringError("transient", retryable=True),
    "out of memory": lambda: MemoryError("transient"),
    "worker death": lambda: SystemExit("transient"),
    "no number": lambda: lambda logits: [float("inf")] * len(logits),
    "broken contract": lambda: lambda logits: [*logits, 0.0],
}


@dataclass(eq=False)
class Ask:
    """What a caller asked for, and what may have happened to it."""

    job: Job
    keys: list[Key] = field(default_factory=list)
    unanswered: set[Key] = field(default_factory=set)
    failed: set[Key] = field(default_factory=set)
    may_be_refused: bool = False
    may_be_late: bool = False
    may_be_closed: bool = False
    cancelled: bool = False
    submitted: int = 0

    @property
    def live(self) -> bool:
        return self.job.waiting

    @property
    def waits(self) -> bool:
        """Whether something of it has to be scored; more of its queries may be to come."""
        known = self.job.pairs[: self.submitted]
        return self.live and (None in known or len(known) == len(self.keys))


class _Store:
    """A shared cache in a dictionary, which may be broken."""

    def __init__(self, values: dict[bytes, bytes], broken: threading.Event) -> None:
        self._values, self._broken = values, broken

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if self._broken.is_set():
            raise OSError("broken")
        return [self._values.get(key) for key in keys]

    def set_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        if self._broken.is_set():
            raise OSError("broken")
        self._values.update(items)

    def close(self) -> None: ...


class _Shared(SharedCache):
    """A shared cache that says whether all that was scored is written, or given up."""

    told = 0

    def keep(self, pairs: Sequence[KeyedPair]) -> None:
        super().keep(pairs)
        self.told += len(pairs)

    @property
    def idle(self) -> bool:
        return not self._writing


class Callers(RuleBasedStateMachine):
    """Callers in one thread; the scorer stands in its forward pass until a rule lets it go on."""

    @initialize(
        entries=st.sampled_from([0, 2, 1000]),
        batch=st.sampled_from([1, 4, 12]),
        bound=st.sampled_from([1, 6, 1000]),
        padded=st.booleans(),
        shares=st.booleans(),
    )
    def open(self, entries: int, batch: int, bound: int, padded: bool, shares: bool) -> None:
        self.shares, self.stored, self.broken = shares, {}, threading.Event()
        self.shared: _Shared | None = None
        self.now = 0.0
        # Whether a bulk pair is due before others must not depend on how fast the machine is.
        self.handicap = mock.patch("rerank_plugins.waiting.HANDICAP_S", 3600.0)
        self.handicap.start()
        self.entries, self.batch, self.bound, self.padded = entries, batch, bound, padded
        self.asks: list[Ask] = []
        self.flight: list[FakePair] | None = None
        self._open_afresh()

    def _open_afresh(self) -> None:
        self.scorer = ScriptedScorer(
            batch_tokens=self.batch, padded=self.padded, instruction="answer"
        )
        scorer = self.scorer
        self.engine = Engine(
            "fake",
            lambda: scorer,
            cache_entries=self.entries,
            batch_tokens=None,
            queue_tokens=self.bound,
            make_shared=self._make_shared if self.shares else None,
            reopens=False,
        )
        self.engine.scorer()
        self.claimed = self.asked = 0
        self.kept: set[Key] = set()
        # Pairs of a batch that failed: they are tried again in smaller ones, ahead of the queue.
        self.halved: set[Key] = set()
        self.deaths: Counter[Key] = Counter()

    def _make_shared(self) -> SharedCache:
        stored: dict[bytes, bytes] = self.stored
        self.shared = _Shared(
            "fake",
            "store",
            lambda: partial(_Store, stored, self.broken),
            timeout_s=HANG_S,
            clock=lambda: self.now,
        )
        return self.shared

    @precondition(lambda self: self.shares)
    @rule()
    def break_or_mend_the_shared_cache(self) -> None:
        self.broken.clear() if self.broken.is_set() else self.broken.set()

    @precondition(lambda self: self.shares)
    @rule(seconds=st.sampled_from([0.5, 2.0, 40.0]))
    def let_time_pass(self, seconds: float) -> None:
        """A store that failed is left alone until then."""
        self.now += seconds

    @rule(
        query=QUERIES,
        documents=DOCUMENTS,
        instruction=INSTRUCTIONS,
        priority=st.sampled_from(Priority),
        passes=PASSES,
    )
    def submit(
        self,
        query: str,
        documents: list[str],
        instruction: str | None,
        priority: Priority,
        passes: int,
    ) -> None:
        self._submit([(query, documents)], instruction, priority)
        self.answer(passes)

    @rule(
        groups=st.lists(st.tuples(QUERIES, DOCUMENTS), min_size=2, max_size=3),
        instruction=INSTRUCTIONS,
        passes=PASSES,
    )
    def submit_several_queries(
        self, groups: list[tuple[str, list[str]]], instruction: str | None, passes: int
    ) -> None:
        self._submit(groups, instruction)
        self.answer(passes)

    def _submit(
        self,
        groups: list[tuple[str, list[str]]],
        instruction: str | None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> None:
        ask = Ask(Job(sum(len(documents) for _, documents in groups), priority=priority))
        for query, documents in groups:
            told = f"{instruction or 'answer'}: {query}"
            ask.keys += [Key(told, document) for document in documents]
        self.asks.append(ask)
        self.asked += 1
        place = 0
        for query, documents in groups:
            keys = ask.keys[place : place + len(documents)]
            full = self.engine.stats().tokens_waiting >= self.bound
            ask.may_be_late |= full and ask.job.begun
            ask.may_be_refused |= full and not ask.job.begun
            known = self.kept & set(keys) if self.entries == 1000 else set()
            ask.unanswered |= set(keys) - known
            ask.failed |= {key for key in keys if key.document == "unreadable"}
            before = self._places()
            steps = self.engine.submitting(
                ask.job,
                query,
                iter(list(enumerate(documents, start=place))),
                instruction=instruction,
            )
            for _ in steps:
                # There is no room for the rest, and this caller waits for nobody.
                assert ask.may_be_late
                ask.cancelled = True
                ask.job.cancel()
            if claimed := self._places() - before:
                assert claimed == len(documents)
                self.claimed += claimed
            place = ask.submitted = place + len(documents)
            self._come_to_rest()
            if not ask.live:
                break

    def _places(self) -> int:
        stats = self.engine.stats()
        return stats.cache_hits + stats.shared_hits + stats.cache_misses + stats.pairs_joined

    @precondition(lambda self: self.asks)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        """Cancelled, or late: to the engine a caller who has gone is one."""
        ask = self.asks[which % len(self.asks)]
        ask.cancelled |= ask.live
        ask.job.cancel()

    @precondition(lambda self: self.flight)
    @rule(passes=PASSES)
    def answer(self, passes: int) -> None:
        for _ in range(passes):
            if self.flight:
                self._go_on(None)

    @precondition(lambda self: self.flight)
    @rule(fault=st.sampled_from(sorted(FAULTS)), times=st.sampled_from([1, 1, 2, 3]))
    def fail(self, fault: str, times: int) -> None:
        for _ in range(times):
            if self.flight:
                self._go_on(FAULTS[fault]())

    @rule(room=st.sampled_from([1, 2, 1000]))
    def change_memory(self, room: int) -> None:
        self.scorer.room = room

    @rule()
    def clear_cache(self) -> None:
        self.engine.clear_cache()
        self.kept.clear()

    @precondition(lambda self: self.asked > 3)
    @rule(wait=st.booleans())
    def close_and_reopen(self, wait: bool) -> None:
        for ask in self.asks:
            ask.may_be_closed |= ask.live
        flown = {whole(pair) for pair in self.flight or []} | self.halved
        waiting = [ask for ask in self.asks if ask.live and not ask.unanswered & flown]
        dispatcher = self.engine._open
        assert dispatcher is not None
        closing = threading.Thread(target=self.engine.close, kwargs={"wait": wait}, daemon=True)
        closing.start()
        if not wait:
            closing.join(HANG_S)
        while not self.engine._closed or (wait and any(ask.live for ask in waiting)):
            time.sleep(0.0002)
            assert closing.is_alive() or not any(ask.live for ask in waiting)
        late = Job(1)
        self.engine.submit(late, "one", iter([(0, "late")]))
        assert isinstance(late.future.exception(HANG_S), ClosedError)
        while self.flight is not None:
            self._go_on(None)
        closing.join(HANG_S)
        assert not closing.is_alive()
        self._check_all()
        assert not any(ask.live for ask in self.asks)
        # Who does not wait for the closing may be back before the worker has ended.
        _until(lambda: self.scorer.closed)
        assert dispatcher.queue.tokens == 0
        assert self.engine._cache._tickets == {}
        if self.shared is not None:
            _until(lambda: self.shared.idle)
        self._open_afresh()

    def _go_on(self, order: Any) -> None:
        """Let the scorer go on, note what that means for each caller, and wait for what follows."""
        flight, self.flight = self.flight, None
        assert flight is not None
        self.scorer.orders.put(order)
        good, bad = self._outcome(flight, order)
        plain = {key for key in good if not window_texts(key.document)}
        for key in plain | bad:
            del self.deaths[key]
        self.kept |= plain
        for ask in self.asks:
            # Of a windowed document others may still be missing: only the job itself knows.
            ask.failed |= bad & set(ask.keys)
            ask.unanswered -= plain
        if isinstance(order, SystemExit):
            # Who joined since the first death is counted as if it had been there.
            bad = set()
        # A window may be of a ticket that was dropped, whatever has been asked since.
        self._come_to_rest({key for key in bad if not window_texts(key.document)})

    def _outcome(self, flight: list[FakePair], order: Any) -> tuple[set[Key], set[Key]]:
        """Return what a pass answers and what it fails; the rest of it is tried again."""
        keys = {whole(pair) for pair in flight}
        if isinstance(order, SystemExit):
            # They fail with the second worker that dies of them.
            self.deaths.update(keys)
            return set(), {key for key in keys if self.deaths[key] >= DEADLY}
        if (
            isinstance(order, BaseException)
            or len(flight) > self.scorer.room
            or any("poison" in pair.document for pair in flight)
        ):
            if len(flight) > 1:
                self.halved |= keys
                return set(), set()
            self.halved -= keys
            return set(), keys
        self.halved -= keys
        bad = {key for key in keys if "nan" in key.document} if order is None else keys
        return keys - bad, bad

    def _come_to_rest(self, failed: Collection[Key] = ()) -> None:
        """Wait until the scorer stands in a pass again, or nobody waits; all else is a hang."""
        until = time.monotonic() + HANG_S
        while self.flight is None and any(ask.waits for ask in self.asks):
            try:
                self.flight = self.scorer.entered.get(timeout=0.002)
            except queue.Empty:
                assert time.monotonic() < until, "somebody waits, and nothing is scored"
            else:
                self._check_batch(self.flight)
        for ask in self.asks:
            # All of it was scored before the next pass began.
            assert not ask.waits or ask.unanswered, "an answer was lost"
            assert not ask.live or ask.failed.isdisjoint(failed), "an error was lost"
        self._check_all()

    def _check_batch(self, flight: list[FakePair]) -> None:
        wanted = {key for ask in self.asks if ask.live for key in ask.keys}
        asked = {key for ask in self.asks for key in ask.keys}
        pieces = [(pair.query, pair.document) for pair in flight]
        assert len(set(pieces)) == len(pieces), "a pair was scored twice"
        assert {whole(pair) for pair in flight} <= asked
        assert {whole(pair) for pair in flight} & wanted, "a batch that nobody wants"
        if self.entries == 1000:
            assert not self.kept & {whole(pair) for pair in flight}, "a known pair was scored"

    def _check_all(self) -> None:
        """Each caller that has been answered got its own logits or its own error."""
        for ask in [ask for ask in self.asks if not ask.live]:
            self.asks.remove(ask)
            if ask.cancelled:
                continue
            error = ask.job.future.exception(HANG_S)
            if error is None:
                assert [pair.logit for pair in ask.job.delivered()] == [
                    truth(*key) for key in ask.keys
                ]
                assert not {key.document for key in ask.keys} & {"poison", "nan", "unreadable"}
            elif isinstance(error, ScoringError):
                names = {f"documents[{i}]" for i, key in enumerate(ask.keys) if key in ask.failed}
                assert any(name in str(error) for name in names), (error, names)
            else:
                may = {
                    QueueFullError: ask.may_be_refused,
                    ClosedError: ask.may_be_closed,
                }
                assert may.get(type(error)), error

    @invariant()
    def counters_add_up(self) -> None:
        if getattr(self, "engine", None) is None:
            return
        if self.flight is None:
            assert not any(ask.live for ask in self.asks)
            _until(lambda: self.engine.stats().tokens_waiting == 0)
            _until(lambda: self.engine._cache._tickets == {})
            # Counted a moment after the ticket has gone.
            _until(lambda: self.engine.stats().cache_misses == self._ended())
            assert self._places() == self.claimed
        if self.shared is not None:
            # What the next rule finds in there must not depend on how fast it was written.
            _until(lambda: self.shared.told == self.engine.stats().pairs_scored)
            _until(lambda: self.shared.idle)

    def _ended(self) -> int:
        stats = self.engine.stats()
        return stats.pairs_scored + stats.pairs_failed + stats.pairs_dropped

    def teardown(self) -> None:
        if getattr(self, "engine", None) is None:
            return
        # Whatever went wrong, no thread is left in a pass.
        for _ in range(999):
            self.scorer.orders.put(None)
        self.engine.close()
        self.handicap.stop()


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.0002)


Callers.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_callers = Callers.TestCase
