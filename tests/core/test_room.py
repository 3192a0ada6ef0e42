"""The line for room in the queue, and how soon there is some."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from rerank_plugins import QueueFullError
from rerank_plugins.cache import PairCache
from rerank_plugins.dispatcher import Dispatcher
from rerank_plugins.home import Home
from rerank_plugins.jobs import Job
from rerank_plugins.observing import Audience
from rerank_plugins.room import (
    INVITED_TURNS,
    SOONEST_S,
    UNMEASURED_WAIT_S,
    Line,
    Pace,
    Turn,
    seconds_until_room,
)
from rerank_plugins.testing import FakeScorer
from rerank_plugins.watching import BatchWatch


def pace(tokens: int, busy_s: float) -> Pace:
    made = Pace()
    made.note(tokens, busy_s)
    return made


def joined(line: Line) -> Turn:
    turn = Turn()
    line.join(turn)
    return turn


def test_turns_come_in_order_and_few_at_a_time() -> None:
    line = Line()
    turns = [joined(line) for _ in range(INVITED_TURNS + 2)]
    assert not any(turn.come.done() for turn in turns)

    line.invite()
    line.invite()
    assert [turn.come.done() for turn in turns] == [True] * INVITED_TURNS + [False] * 2
    assert len(line) == INVITED_TURNS + 2

    line.leave(turns[1])
    line.invite()
    assert [turn.come.done() for turn in turns] == [True] * (INVITED_TURNS + 1) + [False]


def test_the_queue_is_crowded_as_long_as_somebody_waits_for_room() -> None:
    """Below its bound too: else new requests would take what those in the line were promised."""
    cache = PairCache(0)
    watch = BatchWatch(Audience(), "fake", cache)
    dispatcher = Dispatcher(
        [FakeScorer()], [Home("fake")], cache, watch, batch_tokens=1, queue_tokens=9
    )
    assert not dispatcher.queue.crowded
    turn = joined(dispatcher.queue.line)
    # A known pace, and nothing that runs: the wait comes out as 0.
    dispatcher._replicas[0].pace.note(1000, 1.0)

    assert dispatcher.queue.crowded
    with pytest.raises(QueueFullError, match="other requests wait for room in the queue") as full:
        dispatcher.queue.refuse_if_crowded()
    assert full.value.retry_after_s >= SOONEST_S
    dispatcher.queue.leave(turn)
    assert not dispatcher.queue.crowded
    dispatcher.close()


def test_ctrl_c_on_the_way_into_the_line_leaves_nobody_in_it() -> None:
    cache = PairCache(0)
    watch = BatchWatch(Audience(), "fake", cache)
    home = Home("fake")
    dispatcher = Dispatcher([FakeScorer()], [home], cache, watch, batch_tokens=1, queue_tokens=9)
    before = joined(dispatcher.queue.line)

    class Interrupted(Future[None]):
        def add_done_callback(self, fn: object) -> None:
            raise KeyboardInterrupt

    job = Job(1)
    job.future = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        dispatcher.queue.turn_for(job)
    dispatcher.queue.leave(before)

    assert len(dispatcher.queue.line) == 0
    dispatcher.close()


def test_who_leaves_before_its_turn_is_woken_and_holds_up_nobody() -> None:
    line = Line()
    gone, *others = [joined(line) for _ in range(INVITED_TURNS + 1)]
    line.leave(gone)
    line.leave(gone)
    line.invite()

    assert gone.come.done()
    assert all(turn.come.done() for turn in others)
    assert len(line) == INVITED_TURNS


def test_a_caller_who_cancelled_its_wait_is_let_go() -> None:
    line = Line()
    turn = joined(line)
    turn.come.cancel()
    line.invite()
    line.leave(turn)

    assert len(line) == 0


def test_nobody_is_left_in_a_line_that_ends() -> None:
    line = Line()
    turns = [joined(line) for _ in range(INVITED_TURNS + 3)]
    line.invite()
    line.end()

    assert all(turn.come.done() for turn in turns)
    assert len(line) == 0


def test_room_comes_with_the_next_batch_and_the_speed_of_all_replicas() -> None:
    fast, slow = pace(1000, 1.0), pace(500, 1.0)

    # The fast one has half a second to go, then 3000 tokens leave at 1500 a second.
    running = [(fast, 1000, 0.5), (slow, 1000, 0.0)]
    assert seconds_until_room(3000, running) == pytest.approx(2.5)
    assert seconds_until_room(0, running) == pytest.approx(0.5)
    assert seconds_until_room(0, [(fast, 1000, 9.0)]) == 0.0


def test_without_a_measured_speed_it_is_at_least_what_the_running_batch_took() -> None:
    assert seconds_until_room(9, [(Pace(), 9, 0.1)]) == UNMEASURED_WAIT_S
    assert seconds_until_room(9, [(Pace(), 9, 7.0)]) == 7.0


def test_the_pace_forgets_what_was_long_ago() -> None:
    made = pace(1000, 100.0)
    for _ in range(200):
        made.note(1000, 1.0)

    assert made.tokens_per_s == pytest.approx(1000, rel=0.01)
