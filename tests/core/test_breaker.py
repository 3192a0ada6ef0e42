"""The circuit breaker, on a clock that the test turns."""

from __future__ import annotations

import logging
import threading

import pytest

from rerank_plugins.breaker import (
    COOL_DOWN_S,
    FAILURES_TO_OPEN,
    LONGEST_COOL_DOWN_S,
    CircuitBreaker,
    Permit,
    State,
)
from rerank_plugins.errors import (
    ClosedError,
    InputError,
    MissingExtraError,
    ModelLoadError,
    PluginError,
    QueueFullError,
    RerankTimeoutError,
    ScoringError,
)

FAILURE = ScoringError("the device is gone")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def breaker(clock: Clock, told: list[tuple[str, str]]) -> CircuitBreaker:
    def on_change(state: State, error: BaseException | None) -> None:
        told.append((state.value, "" if error is None else type(error).__name__))

    return CircuitBreaker("big", clock=clock, on_change=on_change)


def fail(breaker: CircuitBreaker, times: int, error: BaseException = FAILURE) -> None:
    for _ in range(times):
        permit = breaker.admit()
        assert permit is not None
        permit.fail(error)


def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    fail(breaker, FAILURES_TO_OPEN)
    assert breaker.state is State.OPEN
    return breaker


def test_it_opens_after_failures_in_a_row(breaker: CircuitBreaker) -> None:
    fail(breaker, FAILURES_TO_OPEN - 1)
    assert breaker.admit() is not None

    fail(breaker, 1)
    assert breaker.admit() is None
    assert breaker.refuses


def test_a_success_in_between_begins_the_count_again(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        fail(breaker, FAILURES_TO_OPEN - 1)
        permit = breaker.admit()
        assert permit is not None
        permit.succeed()

    assert breaker.state is State.CLOSED


@pytest.mark.parametrize(
    "error",
    [
        ModelLoadError("big", "no such folder"),
        MissingExtraError(package="torch", extra="torch", needed_for="it"),
    ],
)
def test_a_model_that_cannot_be_loaded_opens_it_at_once(
    breaker: CircuitBreaker, error: BaseException
) -> None:
    fail(breaker, 1, error)

    assert breaker.admit() is None


@pytest.mark.parametrize("error", [FAILURE, RerankTimeoutError("late")])
def test_failed_and_late_answers_count(breaker: CircuitBreaker, error: BaseException) -> None:
    fail(breaker, FAILURES_TO_OPEN, error)

    assert breaker.state is State.OPEN


@pytest.mark.parametrize(
    "error",
    [
        QueueFullError("full"),
        InputError("query is blank"),
        PluginError("text_hook failed"),
        ClosedError("closed"),
        KeyboardInterrupt(),
    ],
)
def test_what_says_nothing_about_the_model_does_not_count(
    breaker: CircuitBreaker, error: BaseException
) -> None:
    fail(breaker, FAILURES_TO_OPEN - 1)
    fail(breaker, FAILURES_TO_OPEN, error)
    assert breaker.state is State.CLOSED

    # Nor does it count for the model.
    fail(breaker, 1)
    assert breaker.state is State.OPEN


def test_callers_without_a_fallback_are_never_refused_and_count(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES_TO_OPEN):
        breaker.watch().fail(FAILURE)
    assert breaker.admit() is None

    breaker.watch().succeed()
    assert breaker.admit() is not None


def test_after_the_cool_down_one_caller_probes_and_the_others_are_refused(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    opened(breaker)
    clock.now += COOL_DOWN_S - 0.001
    assert breaker.admit() is None

    clock.now += 0.001
    probe = breaker.admit()
    assert probe is not None
    assert breaker.state is State.HALF_OPEN
    assert breaker.admit() is None

    probe.succeed()
    assert breaker.admit() is not None
    assert breaker.state is State.CLOSED


def test_of_many_threads_one_probes(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += COOL_DOWN_S
    together = threading.Barrier(8)
    admitted = []

    def ask() -> None:
        together.wait(30)
        admitted.append(breaker.admit())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len([permit for permit in admitted if permit is not None]) == 1


def test_each_failed_probe_doubles_the_cool_down_up_to_the_longest(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    opened(breaker)
    waits = []
    for _ in range(7):
        before = clock.now
        while breaker.refuses:
            clock.now += 0.5
        waits.append(clock.now - before)
        fail(breaker, 1)

    assert waits == [5, 10, 20, 40, LONGEST_COOL_DOWN_S, LONGEST_COOL_DOWN_S, LONGEST_COOL_DOWN_S]


def test_once_it_closed_the_cool_down_is_short_again(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += COOL_DOWN_S
    fail(breaker, 1)
    breaker.watch().succeed()

    opened(breaker)
    clock.now += COOL_DOWN_S
    assert breaker.admit() is not None


def test_a_probe_that_learned_nothing_leaves_its_place_to_the_next_caller(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    opened(breaker)
    clock.now += COOL_DOWN_S
    probe = breaker.admit()
    assert probe is not None
    probe.release()

    another = breaker.admit()
    assert another is not None
    assert breaker.admit() is None


def test_a_permit_counts_once(breaker: CircuitBreaker) -> None:
    permit = breaker.admit()
    assert permit is not None
    for _ in range(FAILURES_TO_OPEN):
        permit.fail(FAILURE)

    assert breaker.state is State.CLOSED


def test_a_late_failure_does_not_lengthen_the_cool_down(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    late = [breaker.watch() for _ in range(FAILURES_TO_OPEN)]
    opened(breaker)
    clock.now += COOL_DOWN_S
    for permit in late:
        permit.fail(FAILURE)

    assert breaker.admit() is not None


def test_a_probe_that_others_overtook_counts_as_any_caller(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    opened(breaker)
    clock.now += COOL_DOWN_S
    probe = breaker.admit()
    assert probe is not None
    breaker.watch().succeed()
    probe.fail(FAILURE)

    assert breaker.state is State.CLOSED


def test_each_change_is_logged_once_and_told(
    breaker: CircuitBreaker,
    clock: Clock,
    told: list[tuple[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="rerank_plugins")
    late = breaker.watch()
    opened(breaker)
    late.fail(FAILURE)
    clock.now += COOL_DOWN_S
    probe = breaker.admit()
    assert probe is not None
    probe.succeed()
    breaker.watch().succeed()

    assert told == [("open", "ScoringError"), ("half_open", ""), ("closed", "")]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "big fails (ScoringError: the device is gone); callers with a fallback get it for 5 s",
        ),
        ("INFO", "big answers again"),
    ]


def test_an_observer_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def on_change(state: State, error: BaseException | None) -> None:
        raise LookupError(state)

    breaker = CircuitBreaker("big", on_change=on_change)
    opened(breaker)

    assert "telling of the circuit breaker of big failed" in caplog.text


def test_a_refusal_says_why_and_when(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += 2

    refusal = breaker.refusal()
    assert refusal.retryable
    assert "ScoringError: the device is gone" in str(refusal)
    assert "again in 3.0 s" in str(refusal)


def test_a_probe_that_is_lost_keeps_nobody_out(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += COOL_DOWN_S
    probe = breaker.admit()
    assert probe is not None
    assert breaker.admit() is None

    # Ctrl-C, say, before anybody could give it back.
    del probe

    assert not breaker.refuses
    assert breaker.admit() is not None


def test_a_permit_may_be_given_back_while_another_is_asked_for() -> None:
    # The garbage collector ends abandoned calls wherever it comes to run.
    ended: list[Permit] = []

    def now() -> float:
        while ended:
            ended.pop().release()
        return 0.0

    breaker = CircuitBreaker("big", clock=now)
    fail(breaker, FAILURES_TO_OPEN)
    ended.append(breaker.watch())
    asking = threading.Thread(target=breaker.admit, daemon=True)
    asking.start()
    asking.join(20)

    assert not asking.is_alive()
