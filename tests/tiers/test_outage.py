"""What fails is left alone, tried by one caller now and then, and logged once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rerank_plugins.tiers.outage import LONGEST_PAUSE_S, Outage

if TYPE_CHECKING:
    import pytest


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_after_a_failure_one_caller_a_pause_is_let_through() -> None:
    clock = Clock()
    outage = Outage("reading", clock=clock)
    assert outage.admits()
    assert outage.admits()

    outage.failed(OSError("gone"))
    assert not outage.admits()
    clock.now += 1.0
    assert outage.admits()
    assert not outage.admits()

    outage.succeeded()
    assert outage.admits()
    assert outage.admits()


def test_each_failure_doubles_the_pause_up_to_the_longest() -> None:
    clock = Clock()
    outage = Outage("reading", clock=clock)
    pauses = []
    for _ in range(8):
        outage.failed(OSError("gone"))
        began = clock.now
        while not outage.admits():
            clock.now += 0.5
        pauses.append(clock.now - began)

    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]

    outage.succeeded()
    outage.failed(OSError("gone"))
    clock.now += 1.0
    assert outage.admits()


def test_those_who_were_let_through_together_fail_once() -> None:
    clock = Clock()
    outage = Outage("reading", clock=clock)
    for _ in range(10):
        assert outage.admits()
    for _ in range(10):
        outage.failed(OSError("gone"))
    clock.now += 1.0
    assert outage.admits()

    outage.failed(OSError("gone"))
    outage.failed(OSError("gone"))
    clock.now += 2.0
    assert outage.admits()


def test_whoever_tries_and_never_comes_back_keeps_others_out_for_one_pause() -> None:
    clock = Clock()
    outage = Outage("reading", clock=clock)
    outage.failed(OSError("gone"))
    clock.now += 1.0
    assert outage.admits()

    clock.now += 1.0
    assert outage.admits()


def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage("reading", clock=Clock())
    outage.succeeded()
    for _ in range(3):
        outage.failed(OSError("gone\nand more"))
    outage.succeeded()
    outage.succeeded()

    assert [record.message for record in caplog.records] == [
        "reading fails (OSError: gone); pairs are scored without it, and it is tried again",
        "reading works again",
    ]
