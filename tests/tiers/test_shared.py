"""The shared cache over a store that does what it is told: late, failing, lying, closed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.jobs import CachedPair
from rerank_plugins.tiers import outage, shared
from rerank_plugins.tiers.packing import namespace
from rerank_plugins.tiers.shared import SharedCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KEYS = [bytes([i]) * 16 for i in range(4)]
PAIR = CachedPair(1.5, truncated=False, tokens=3)


class MemoryStore:
    """Keeps values in a dict that its likes share, and notes who used it."""

    def __init__(self, values: dict[bytes, Any]) -> None:
        self.values = values
        self.threads: set[str] = set()
        self.closed = False

    def get_many(self, keys: Sequence[bytes]) -> Sequence[object]:
        self.threads.add(threading.current_thread().name)
        return [self.values.get(key) for key in keys]

    def set_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self.threads.add(threading.current_thread().name)
        self.values.update(items)

    def close(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.closed = True


class Opened:
    """A shared cache over stores of one dict; ``get`` and ``put`` stand in for what they do."""

    def __init__(self, *, timeout_s: float = 30.0) -> None:
        self.values: dict[bytes, Any] = {}
        self.stores: list[MemoryStore] = []
        self.get: Callable[[], None] = lambda: None
        self.put: Callable[[], None] = lambda: None
        self.shared = SharedCache("fake", "memory", lambda: self.make, timeout_s=timeout_s)

    def make(self) -> MemoryStore:
        opened = self

        class Store(MemoryStore):
            def get_many(self, keys: Sequence[bytes]) -> Sequence[object]:
                opened.get()
                return super().get_many(keys)

            def set_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
                opened.put()
                super().set_many(items)

        self.stores.append(Store(self.values))
        return self.stores[-1]

    def written(self, count: int) -> None:
        """Wait until *count* values are there."""
        until = time.monotonic() + 30
        while len(self.values) < count:
            assert time.monotonic() < until
            time.sleep(0.001)


@pytest.fixture
def opened(no_leaks: None) -> Iterator[Opened]:
    made = Opened()
    made.shared.open()
    yield made
    made.shared.close(wait=True)


def test_what_is_kept_is_found_under_keys_of_this_release(opened: Opened) -> None:
    opened.shared.keep([(KEYS[0], PAIR), (KEYS[1], PAIR)])
    opened.written(2)

    assert opened.shared.look_up(KEYS) == {KEYS[0]: PAIR, KEYS[1]: PAIR}
    assert set(opened.values) == {namespace() + KEYS[0], namespace() + KEYS[1]}
    assert opened.shared.stats() == (0, 0)


def test_each_store_belongs_to_one_thread_from_its_first_use_to_its_closing(
    no_leaks: None,
) -> None:
    made = Opened()
    made.shared.open()
    made.shared.keep([(KEYS[0], PAIR)])
    made.shared.look_up(KEYS)
    made.shared.close(wait=True)

    assert len(made.stores) == 2
    assert [len(store.threads) for store in made.stores] == [1, 1]
    assert all(store.closed for store in made.stores)
    assert made.stores[0].threads != made.stores[1].threads


@pytest.mark.parametrize(
    "wrong", [b"", b"not a pair", "text", 5, b"\x80\x04K\x01."], ids=["blank", "b", "s", "i", "p"]
)
def test_a_value_that_is_none_is_a_miss_and_counted(opened: Opened, wrong: object) -> None:
    opened.shared.keep([(KEYS[0], PAIR)])
    opened.written(1)
    opened.values[namespace() + KEYS[1]] = wrong

    assert opened.shared.look_up(KEYS) == {KEYS[0]: PAIR}
    assert opened.shared.stats() == (1, 0)


def test_a_value_of_another_key_is_a_miss(opened: Opened) -> None:
    opened.shared.keep([(KEYS[0], PAIR)])
    opened.written(1)
    opened.values[namespace() + KEYS[1]] = opened.values[namespace() + KEYS[0]]

    assert KEYS[1] not in opened.shared.look_up(KEYS)


def test_a_store_that_is_late_is_not_waited_for_and_left_alone(no_leaks: None) -> None:
    made = Opened(timeout_s=0.05)
    made.shared.open()
    gate, looks = threading.Event(), []

    def late() -> None:
        looks.append(1)
        assert gate.wait(30)

    made.get = late
    try:
        assert made.shared.look_up(KEYS) == {}
        for _ in range(5):
            assert made.shared.look_up(KEYS) == {}
        assert made.shared.stats() == (1, 6 * len(KEYS))
        assert len(looks) == 1
    finally:
        gate.set()
        made.shared.close(wait=True)


def test_what_was_given_up_is_not_looked_up_later(no_leaks: None, short_pauses: None) -> None:
    made = Opened(timeout_s=0.05)
    made.shared.open()
    gate, looks = threading.Event(), []

    def late() -> None:
        looks.append(1)
        assert gate.wait(30)

    made.get = late
    while made.shared.stats().errors < 3:
        made.shared.look_up(KEYS)
    gate.set()
    made.shared.close(wait=True)

    assert len(looks) == 1


def test_a_caller_without_time_says_nothing_about_the_store(opened: Opened) -> None:
    gate = threading.Event()
    opened.get = lambda: _hold(gate)
    assert opened.shared.look_up(KEYS, patience_s=0.01) == {}
    gate.set()
    opened.get = lambda: None
    opened.shared.keep([(KEYS[0], PAIR)])
    opened.written(1)

    assert opened.shared.look_up(KEYS) == {KEYS[0]: PAIR}
    assert opened.shared.stats() == (0, len(KEYS))


def _hold(gate: threading.Event) -> None:
    assert gate.wait(30)


def _fail() -> None:
    raise ConnectionError("gone")


def test_a_store_that_fails_is_closed_and_opened_anew(opened: Opened, short_pauses: None) -> None:
    opened.shared.keep([(KEYS[0], PAIR)])
    opened.written(1)
    opened.get = _fail
    assert opened.shared.look_up(KEYS) == {}
    opened.get = lambda: None
    found: dict[bytes, CachedPair] = {}
    until = time.monotonic() + 30
    while not found and time.monotonic() < until:
        found = opened.shared.look_up(KEYS)

    assert found == {KEYS[0]: PAIR}
    assert [store.closed for store in opened.stores] == [True, False, False]


def test_writing_fails_by_itself(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full is still read."""
    opened.shared.keep([(KEYS[0], PAIR)])
    opened.written(1)
    tried = threading.Event()

    def full() -> None:
        tried.set()
        raise OSError("no space left")

    opened.put = full
    opened.shared.keep([(KEYS[1], PAIR)])
    assert tried.wait(30)
    while not opened.shared.stats().errors:
        time.sleep(0.001)
    opened.shared.keep([(KEYS[2], PAIR)])
    while opened.shared.stats().skipped < 2:
        time.sleep(0.001)

    assert opened.shared.look_up(KEYS) == {KEYS[0]: PAIR}
    assert opened.shared.stats() == (1, 2)


def test_of_too_many_that_wait_to_be_written_the_oldest_are_dropped(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "WAITING_PAIRS", 3)
    gate, writing = threading.Event(), threading.Event()

    def slow() -> None:
        writing.set()
        assert gate.wait(30)

    opened.put = slow
    opened.shared.keep([(KEYS[0], PAIR)])
    assert writing.wait(30)
    opened.shared.keep([(key, PAIR) for key in KEYS[1:]])
    opened.shared.keep([(KEYS[1], PAIR), (b"x" * 16, PAIR), (b"y" * 16, PAIR)])
    assert opened.shared.stats() == (0, 2)
    gate.set()
    opened.written(4)

    written = [key.removeprefix(namespace()) for key in opened.values]
    assert written == [KEYS[0], b"y" * 16, b"x" * 16, KEYS[1]]


def test_what_waits_is_written_in_batches(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "BATCH_PAIRS", 10)
    gate, writing, batches = threading.Event(), threading.Event(), []

    def slow() -> None:
        batches.append(1)
        writing.set()
        assert gate.wait(30)

    opened.put = slow
    opened.shared.keep([(bytes([0, 0]) * 8, PAIR)])
    assert writing.wait(30)
    for i in range(1, 26):
        opened.shared.keep([(bytes([i, i]) * 8, PAIR)])
    gate.set()
    opened.written(26)

    assert len(batches) == 4


def test_closing_writes_what_waits_and_ends_the_threads(no_leaks: None) -> None:
    made = Opened()
    made.shared.open()
    made.shared.keep([(bytes([i]) * 16, PAIR) for i in range(100)])
    made.shared.close(wait=True)

    assert len(made.values) == 100
    assert made.shared.look_up(KEYS) == {}
    assert made.shared.stats() == (0, len(KEYS))
    made.shared.keep([(KEYS[0], PAIR)])
    made.shared.open()
    assert len(made.stores) == 2


def test_closing_does_not_wait_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "FLUSH_WAIT_S", 0.05)
    made = Opened()
    made.shared.open()
    gate = threading.Event()
    made.put = lambda: _hold(gate)
    made.shared.keep([(KEYS[0], PAIR)])
    closing = threading.Thread(target=made.shared.close, kwargs={"wait": True})
    closing.start()
    closing.join(30)

    assert not closing.is_alive()
    gate.set()


def test_a_store_that_cannot_be_opened_is_a_store_that_is_down(
    no_leaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> MemoryStore:
        raise PermissionError("not yours")

    down = SharedCache("fake", "memory", lambda: refuse, timeout_s=30)
    down.open()

    assert down.look_up(KEYS) == {}
    assert down.stats().errors == 1
    assert "reading from the shared cache memory fails (PermissionError: not yours)" in caplog.text
    down.close(wait=True)


def test_before_it_is_opened_nothing_is_asked(no_leaks: None) -> None:
    made = Opened()
    made.shared.keep([(KEYS[0], PAIR)])

    assert made.shared.look_up(KEYS) == {}
    assert made.stores == []


def test_a_fork_waits_until_nothing_is_half_written(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, writing, forked = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        writing.set()
        assert gate.wait(30)

    monkeypatch.setattr(shared, "FORK_WAIT_S", 30)
    opened.put = slow
    opened.shared.keep([(KEYS[0], PAIR)])
    assert writing.wait(30)
    goes_on: list[Callable[[], None]] = []

    def fork() -> None:
        goes_on.append(opened.shared.before_fork())
        forked.set()

    threading.Thread(target=fork).start()
    assert not forked.wait(0.05)
    gate.set()
    assert forked.wait(30)
    opened.shared.keep([(KEYS[1], PAIR)])
    assert not opened.shared.look_up(KEYS, patience_s=0.05)
    assert len(opened.values) == 1

    goes_on[0]()
    opened.written(2)


def test_pauses_are_those_of_a_server_that_restarts() -> None:
    assert outage.FIRST_PAUSE_S == 1.0
