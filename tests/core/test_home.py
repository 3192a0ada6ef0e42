"""Each replica's scorer is opened, entered and closed in one and the same thread."""

from __future__ import annotations

import gc
import signal
import threading
import time
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.engine import Engine
from rerank_plugins.errors import ClosedError, ConfigError
from rerank_plugins.jobs import Job
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HANG_S = 20


class Resident(FakeScorer):
    """Notes in which threads it is opened, entered and closed."""

    def __init__(self, *deaths: BaseException, **settings: Any) -> None:
        super().__init__(**settings)
        self.deaths = list(deaths)
        self.seen = [threading.current_thread()]

    def forward(self, pairs: Sequence[Any]) -> list[float]:
        self.seen.append(threading.current_thread())
        if self.deaths:
            raise self.deaths.pop()
        return super().forward(pairs)

    def close(self) -> None:
        self.seen.append(threading.current_thread())
        super().close()


def make_engine(*openers: Callable[[], Any]) -> Engine:
    return Engine(
        "fake",
        openers[0],
        cache_entries=0,
        batch_tokens=None,
        queue_tokens=1000,
        more_replicas=openers[1:],
    )


def opening(opened: list[Any], make: Callable[[], Any] = Resident) -> Callable[[], Any]:
    def open_it() -> Any:
        opened.append(make())
        return opened[-1]

    return open_it


def signalled_opening(
    opened: list[Resident], heard: threading.Event, number: int
) -> Callable[[], Any]:
    """Open only once the signal *number* has been *heard* in the main thread."""
    main = threading.main_thread().ident
    assert main is not None

    def make() -> Resident:
        call_until(heard, main, number)
        return Resident()

    return opening(opened, make)


def test_each_replica_is_opened_entered_and_closed_in_a_thread_of_its_own(no_leaks: None) -> None:
    opened: list[Resident] = []
    engine = make_engine(*[opening(opened)] * 3)
    engine.scorer()
    engine.warm_up()
    engine.close()

    assert [scorer.closed for scorer in opened] == [True] * 3
    homes = [set(scorer.seen) for scorer in opened]
    assert [len(home) for home in homes] == [1, 1, 1]
    assert len(set.union(*homes)) == 3
    assert threading.current_thread() not in set.union(*homes)


def test_one_that_takes_the_place_of_a_dead_one_lives_where_that_one_did(no_leaks: None) -> None:
    opened: list[Resident] = []
    made = iter([Resident(SystemExit()), Resident()])
    engine = make_engine(opening(opened, lambda: Resident(*next(made).deaths)))
    engine.warm_up()
    engine.close()

    assert [len(scorer.seen) for scorer in opened] == [3, 3]
    assert len({*opened[0].seen, *opened[1].seen}) == 1


def test_an_engine_that_was_opened_and_never_asked_closes_in_the_same_thread(
    no_leaks: None,
) -> None:
    opened: list[Resident] = []
    engine = make_engine(opening(opened))
    engine.scorer()
    engine.close()

    assert opened[0].closed
    assert len(set(opened[0].seen)) == 1


def test_a_failed_opening_raises_what_the_scorer_raised_and_leaves_nothing(
    no_leaks: None,
) -> None:
    opened: list[Resident] = []
    reason = OSError("no device")

    def fail() -> Any:
        raise reason

    engine = make_engine(opening(opened), fail)
    threads = threading.active_count()
    with pytest.raises(OSError, match="no device") as raised:
        engine.scorer()

    assert raised.value is reason
    assert "in fail" in "".join(traceback.format_exception(raised.value))
    assert opened[0].closed
    assert len(set(opened[0].seen)) == 1
    assert threading.active_count() == threads


def test_a_failed_opening_is_no_ring_of_garbage(no_leaks: None) -> None:
    class Refused(Exception):  # noqa: N818  no error of ours
        pass

    def fail() -> Any:
        raise Refused

    engine = make_engine(fail)
    gc.collect()
    gc.disable()
    try:
        try:
            engine.scorer()
        except Refused as exc:
            gone = weakref.ref(exc)
        assert gone() is None
    finally:
        gc.enable()


def call_until(heard: threading.Event, thread: int, number: int) -> None:
    """Signal again and again: one that comes just before a thread falls asleep does not wake it."""
    until = time.monotonic() + HANG_S
    while not heard.wait(0.01):
        assert time.monotonic() < until
        signal.pthread_kill(thread, number)


@pytest.fixture
def _one_interrupt() -> Iterator[None]:
    """The first Ctrl-C is taken as ever, and no other."""
    calls: list[int] = []

    def take(number: int, _: object) -> None:
        calls.append(number)
        if len(calls) == 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, take)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_one_interrupt")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to a thread")
def test_an_interrupted_caller_leaves_no_scorer_open_behind_it(no_leaks: None) -> None:
    opened: list[Resident] = []
    go_on = threading.Event()
    engine = make_engine(signalled_opening(opened, go_on, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        engine.scorer()
    assert not opened
    go_on.set()
    # The next caller waits until what the last one left is closed, then opens anew.
    assert engine.scorer() is opened[1]
    assert [scorer.closed for scorer in opened] == [True, False]
    assert len(set(opened[0].seen)) == 1
    engine.close()
    assert opened[1].closed


@pytest.mark.usefixtures("_one_interrupt")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to a thread")
def test_closing_waits_for_an_opening_that_was_given_up(no_leaks: None) -> None:
    opened: list[Resident] = []
    go_on = threading.Event()
    engine = make_engine(signalled_opening(opened, go_on, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        engine.scorer()
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(engine.close)
        assert not opened
        go_on.set()
        closing.result(HANG_S)

    assert [scorer.closed for scorer in opened] == [True]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to a thread")
def test_a_signal_handler_may_close_the_engine_that_its_thread_is_opening(no_leaks: None) -> None:
    opened: list[Resident] = []
    closed = threading.Event()

    def close(*_: object) -> None:
        engine.close()
        closed.set()

    engine = make_engine(signalled_opening(opened, closed, signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, close)
    try:
        with pytest.raises(ClosedError):
            engine.scorer()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert [scorer.closed for scorer in opened] == [True]


def test_a_finalizer_in_the_opening_thread_may_close_the_engine(no_leaks: None) -> None:
    """The garbage collector runs anywhere, and whoever waits holds the lock of the opening."""
    opened: list[Resident] = []

    def open_it() -> Any:
        engine.close(wait=False)
        opened.append(Resident())
        return opened[-1]

    engine = make_engine(open_it)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ClosedError):
        pool.submit(engine.scorer).result(HANG_S)

    assert [scorer.closed for scorer in opened] == [True]


def test_replicas_that_differ_are_closed_where_they_were_opened(no_leaks: None) -> None:
    opened: list[Resident] = []
    sizes = iter([9, 10])
    engine = make_engine(*[opening(opened, lambda: Resident(max_words=next(sizes)))] * 2)
    with pytest.raises(ConfigError, match="they must answer alike"):
        engine.scorer()

    assert [len(set(scorer.seen)) for scorer in opened] == [1, 1]
    assert [scorer.closed for scorer in opened] == [True, True]


def test_a_job_after_the_opening_is_answered_by_the_thread_that_opened(no_leaks: None) -> None:
    opened: list[Resident] = []
    engine = make_engine(opening(opened))
    job = Job(1)
    engine.submit(job, "fox", iter([(0, "a fox")]))
    job.future.result(HANG_S)

    assert job.delivered()[0].logit == 1.0
    assert len(set(opened[0].seen)) == 1
    engine.close()
