"""What waits, by priority and arrival: no threads, and a clock that the test holds."""

from __future__ import annotations

import random
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.jobs import Piece, Ticket
from rerank_plugins.options import Priority
from rerank_plugins.testing import FakePair
from rerank_plugins.waiting import HANDICAP_S, WaitingPieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

BULK, INTERACTIVE = Priority.BULK, Priority.INTERACTIVE


def piece(tokens: int = 1, priority: Priority = INTERACTIVE) -> Piece:
    pair = FakePair("q", "d", tokens, truncated=False)
    return Ticket(b"key", priority).take(pair)[0]


def bulk(tokens: int = 1) -> Piece:
    return piece(tokens, BULK)


def lengths(pieces: Iterable[Piece]) -> list[int]:
    return sorted(each.tokens for each in pieces)


@pytest.fixture
def waiting() -> WaitingPieces:
    return WaitingPieces(padded=False)


def test_interactive_pieces_pass_bulk_ones_that_came_before(waiting: WaitingPieces) -> None:
    waiting.add([bulk(5)], 0.0)
    waiting.add([piece(7)], HANDICAP_S / 2)

    assert lengths(waiting.take_batch(10)) == [7]
    assert lengths(waiting.take_batch(10)) == [5]
    assert waiting.take_batch(10) == []


def test_bulk_pieces_pass_interactive_ones_that_came_long_after(waiting: WaitingPieces) -> None:
    waiting.add([bulk(5)], 0.0)
    waiting.add([piece(7)], HANDICAP_S * 1.1)

    assert lengths(waiting.take_batch(10)) == [5]


def test_a_batch_holds_pieces_of_one_priority(waiting: WaitingPieces) -> None:
    waiting.add([bulk(2), bulk(3)], 0.0)
    waiting.add([piece(2), piece(3)], 0.0)

    first, second = waiting.take_batch(100), waiting.take_batch(100)

    assert [each.ticket.priority for each in first] == [INTERACTIVE, INTERACTIVE]
    assert [each.ticket.priority for each in second] == [BULK, BULK]


def test_no_bulk_piece_starves_under_endless_interactive_load(waiting: WaitingPieces) -> None:
    waiting.add([bulk(5)], 0.0)
    for tick in range(1000):
        now_s = tick / 100
        waiting.add([piece(9), piece(9)], now_s)
        if lengths(waiting.take_batch(10)) == [5]:
            break

    # With two coming for each that goes, the bulk piece is older than most from here on.
    assert now_s <= 2 * HANDICAP_S + 0.1


def test_promoted_pieces_go_with_the_interactive_ones(waiting: WaitingPieces) -> None:
    joined, other = bulk(4), bulk(5)
    waiting.add([other, joined], 0.0)
    waiting.add([piece(6)], 0.1)
    joined.ticket.priority = INTERACTIVE
    waiting.promote([joined.ticket], 0.1)

    assert waiting.tokens == 15
    assert lengths(waiting.take_batch(100)) == [4, 6]
    assert lengths(waiting.take_batch(100)) == [5]


def test_a_piece_that_is_due_already_loses_nothing_by_promotion(waiting: WaitingPieces) -> None:
    old = bulk(4)
    waiting.add([old], 0.0)
    waiting.add([piece(6)], HANDICAP_S + 0.1)
    old.ticket.priority = INTERACTIVE
    waiting.promote([old.ticket], HANDICAP_S + 1)

    assert lengths(waiting.take_batch(100)) == [4]


@pytest.mark.parametrize("priority", [BULK, INTERACTIVE])
def test_what_is_put_back_goes_first_again(waiting: WaitingPieces, priority: Priority) -> None:
    waiting.add([piece(4, priority), piece(40, priority)], 0.0)
    batch = waiting.take_batch(10)
    waiting.add([piece(41, priority)], 0.1)
    waiting.put_back(batch)

    assert waiting.tokens == 85
    assert lengths(waiting.take_batch(10)) == [4]
    assert lengths(waiting.take_batch(100)) == [40, 41]


def test_what_is_put_back_goes_in_the_order_of_its_coming(waiting: WaitingPieces) -> None:
    waiting.add([piece(8)], 0.0)
    waiting.add([piece(9)], 0.1)
    waiting.put_back(waiting.take_batch(100))

    assert lengths(waiting.take_batch(1)) == [8]


def test_what_was_promoted_in_a_batch_is_not_put_back_as_bulk(waiting: WaitingPieces) -> None:
    joined = bulk(4)
    waiting.add([joined], 0.0)
    batch = waiting.take_batch(10)
    joined.ticket.priority = INTERACTIVE
    waiting.add([piece(5)], 0.5)
    waiting.add([bulk(6)], -HANDICAP_S + 0.3)
    waiting.put_back(batch)

    assert lengths(waiting.take_batch(4)) == [4]


def test_the_oldest_is_known_whatever_its_priority(waiting: WaitingPieces) -> None:
    assert waiting.oldest_s is None
    waiting.add([piece()], 2.0)
    waiting.add([bulk()], 1.0)

    assert waiting.oldest_s == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_each_piece_leaves_once_and_tokens_add_up(waiting: WaitingPieces, seed: int) -> None:
    chance = random.Random(seed)
    expected: dict[int, Piece] = {}
    left: list[Piece] = []
    for tick in range(200):
        match chance.choice(["add", "add", "take", "settle", "promote", "put back"]):
            case "add":
                kinds = [chance.choice([BULK, INTERACTIVE]) for _ in range(chance.randrange(4))]
                added = [piece(chance.randrange(1, 9), kind) for kind in kinds]
                waiting.add(added, tick / 10)
                expected |= {id(each): each for each in added}
            case "take":
                batch = waiting.take_batch(chance.randrange(1, 30))
                left += [expected.pop(id(each)) for each in batch]
            case "settle" if expected:
                expected.pop(chance.choice(list(expected))).ticket.settled = True
                waiting.drop_settled()
            case "promote" if expected:
                chosen = [each for each in expected.values() if chance.random() < 0.3]
                for each in chosen:
                    each.ticket.priority = INTERACTIVE
                waiting.promote([each.ticket for each in chosen], tick / 10)
            case "put back" if left:
                again = [left.pop() for _ in range(chance.randrange(len(left) + 1))]
                waiting.put_back(again)
                expected |= {id(each): each for each in again}
        assert waiting.tokens == sum(each.tokens for each in expected.values())
        assert len(waiting) == len(expected)

    assert {id(each) for each in waiting.take_all()} == set(expected)
    assert waiting.tokens == len(waiting) == 0


def interrupted(line: int, act: Callable[[], object]) -> bool:
    """Press Ctrl-C as *act* comes to its *line*-th line; returns whether it has so many."""
    left = line

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if event == "line" and "rerank_plugins" in frame.f_code.co_filename:
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def prefixed(tokens: int, prefix: bytes) -> Piece:
    made = piece(tokens)
    made.prefix, made.prefix_tokens = prefix, 3 * bool(prefix)
    return made


@pytest.mark.parametrize("prefix", [b"", b"shared"])
def test_ctrl_c_while_pieces_come_leaves_none_of_them(prefix: bytes) -> None:
    for line in range(1, 1000):
        waiting = WaitingPieces(padded=False)
        waiting.add([prefixed(1, prefix)], 0.0)
        more = [prefixed(2, prefix), prefixed(4, prefix)]
        if not interrupted(line, partial(waiting.add, more, 0.0)):
            break
        assert waiting.tokens == 1 + 3 * bool(prefix)
        assert [each.own for each in waiting.take_batch(100)] == [1]
        assert (waiting.tokens, len(waiting), waiting.take_batch(100)) == (0, 0, [])
    assert 10 < line < 1000


def test_ctrl_c_while_pieces_are_promoted_loses_none_of_them() -> None:
    for line in range(1, 1000):
        waiting = WaitingPieces(padded=False)
        pieces = [bulk(1), bulk(2), bulk(4)]
        waiting.add(pieces, 0.0)
        promotion = partial(waiting.promote, [each.ticket for each in pieces[:2]], 0.1)
        if not interrupted(line, promotion):
            break
        left = [*waiting.take_batch(100), *waiting.take_batch(100)]
        assert lengths(left) == [1, 2, 4]
        assert (waiting.tokens, len(waiting), waiting.take_batch(100)) == (0, 0, [])
    assert 10 < line < 1000


def test_ctrl_c_while_pieces_are_dropped_is_made_good_the_next_time() -> None:
    for line in range(1, 1000):
        waiting = WaitingPieces(padded=False)
        pieces = [bulk(1), piece(2), piece(4)]
        waiting.add(pieces, 0.0)
        pieces[0].ticket.settled = pieces[1].ticket.settled = True
        if not interrupted(line, waiting.drop_settled):
            break
        waiting.drop_settled()
        assert waiting.tokens == 4
        assert lengths(waiting) == [4]
    assert 5 < line < 1000
