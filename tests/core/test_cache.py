"""The pair cache and the pairs on their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.cache import PairCache, pair_key
from rerank_plugins.errors import ScoringError
from rerank_plugins.jobs import CachedPair, Job
from rerank_plugins.stages import StageClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rerank_plugins.jobs import Waiter

texts = st.binary(max_size=12)


@given(texts, texts, texts, texts, texts, texts)
def test_different_pairs_have_different_keys(
    a: bytes, b: bytes, c: bytes, d: bytes, e: bytes, f: bytes
) -> None:
    assert (pair_key(a, b, c) == pair_key(d, e, f)) == ((a, b, c) == (d, e, f))


def test_moving_the_border_between_two_texts_is_another_pair() -> None:
    assert pair_key(b"m", b"ab", b"c") != pair_key(b"m", b"a", b"bc")
    assert pair_key(b"ma", b"b", b"c") != pair_key(b"m", b"ab", b"c")


def _score(cache: PairCache, key: bytes, logit: float) -> Job:
    job = Job(1)
    tickets = cache.claim(job, [key], [0])
    cache.resolve((ticket, CachedPair(logit, truncated=False)) for ticket in tickets.values())
    return job


def test_a_scored_pair_is_a_hit_the_next_time() -> None:
    cache = PairCache(10)
    _score(cache, b"k", 1.5)

    job = Job(1)
    assert cache.claim(job, [b"k"], [0]) == {}

    job.future.result(timeout=0)
    assert job.pairs[0] is not None
    assert (job.pairs[0].logit, job.cached[0]) == (1.5, True)
    assert cache.stats()[:4] == (1, 1, 1, 0)


def test_the_least_recently_used_entry_goes_first_and_is_counted() -> None:
    cache = PairCache(2)
    for key in (b"a", b"b"):
        _score(cache, key, 0.0)
    cache.claim(Job(1), [b"a"], [0])
    _score(cache, b"c", 0.0)

    assert cache.covers([b"a", b"c"])
    assert not cache.covers([b"b"])
    assert (cache.stats().entries, cache.stats().evictions) == (2, 1)


def test_no_entries_means_no_cache() -> None:
    cache = PairCache(0)
    _score(cache, b"a", 0.0)

    assert not cache.covers([b"a"])
    assert cache.stats().entries == 0


def test_one_pair_twice_in_a_request_is_one_ticket() -> None:
    cache, job = PairCache(10), Job(3)

    tickets = cache.claim(job, [b"a", b"b", b"a"], [0, 1, 2])
    assert sorted(tickets) == [0, 1]
    cache.resolve(
        (ticket, CachedPair(float(place), truncated=False)) for place, ticket in tickets.items()
    )

    job.future.result(timeout=0)
    assert [pair.logit for pair in job.pairs if pair] == [0.0, 1.0, 0.0]
    assert cache.stats().joined == 1


def test_a_second_request_joins_a_pair_on_its_way() -> None:
    cache, first, second = PairCache(10), Job(1), Job(1)
    tickets = cache.claim(first, [b"a"], [0])

    assert cache.claim(second, [b"a"], [0]) == {}
    assert second.waiting

    cache.resolve((ticket, CachedPair(2.0, truncated=False)) for ticket in tickets.values())
    second.future.result(timeout=0)


def test_a_failed_pair_is_not_kept_and_fails_whoever_waits() -> None:
    cache, first, second = PairCache(10), Job(1), Job(1)
    tickets = cache.claim(first, [b"a"], [0])
    cache.claim(second, [b"a"], [0])

    cache.fail(tickets.values(), lambda waiter: ValueError(waiter.where))

    errors = [job.future.exception(timeout=0) for job in (first, second)]
    assert [str(error) for error in errors] == ["documents[0]", "documents[0]"]
    assert errors[0] is not errors[1]
    assert len(cache.claim(Job(1), [b"a"], [0])) == 1


def test_a_pair_is_dropped_only_when_nobody_waits_for_it() -> None:
    cache, first, second = PairCache(10), Job(1), Job(1)
    tickets = list(cache.claim(first, [b"a"], [0]).values())
    cache.claim(second, [b"a"], [0])

    first.cancel()
    assert cache.drop_unwanted(tickets) == set()
    second.cancel()
    assert cache.drop_unwanted(tickets) == {id(tickets[0])}
    assert not cache.covers([b"a"])


def test_clearing_forgets_logits_and_is_no_eviction() -> None:
    cache = PairCache(10)
    _score(cache, b"a", 0.0)
    cache.clear()

    assert not cache.covers([b"a"])
    assert cache.stats().evictions == 0


def test_what_ctrl_c_cut_short_is_claimed_anew() -> None:
    cache = PairCache(10)

    class Interrupted(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.claim(Job(2), Interrupted([b"a", b"b"]), [0, 1])

    assert list(cache.claim(Job(1), [b"a"], [0])) == [0]


def test_who_joined_what_ctrl_c_cut_short_is_told_to_try_again() -> None:
    cache, joined = PairCache(10), Job(1)

    class Interrupted(Job):
        def settle(self) -> None:
            if self.pairs and self.begun:
                assert cache.claim(joined, [b"a"], [0]) == {}
                raise KeyboardInterrupt

    first = Interrupted(1)
    first.begun = True
    with pytest.raises(KeyboardInterrupt):
        cache.claim(first, [b"a"], [0])

    error = joined.future.exception(timeout=0)
    assert isinstance(error, ScoringError)
    assert error.retryable


def test_an_error_that_cannot_be_put_into_words_reaches_everybody() -> None:
    cache, first, second = PairCache(10), Job(1), Job(1)
    tickets = [
        *cache.claim(first, [b"a"], [0]).values(),
        *cache.claim(second, [b"b"], [0]).values(),
    ]

    def wordless(waiter: Waiter) -> BaseException:
        raise RuntimeError("no words")

    cache.fail(tickets, wordless)

    for job in (first, second):
        assert isinstance(job.future.exception(timeout=0), RuntimeError)


def test_a_clock_that_is_taken_away_meanwhile_stops_nobody() -> None:
    class Leaving(Job):
        """Its caller goes on to a fallback between any look at the clock and the next."""

        __slots__ = ("_looks",)

        @property
        def clock(self) -> StageClock | None:
            self._looks = getattr(self, "_looks", 0) + 1
            return StageClock() if self._looks % 2 else None

        @clock.setter
        def clock(self, clock: StageClock | None) -> None:
            pass

    cache, other = PairCache(10), Job(1)
    for _ in range(2):
        # However many looks came before.
        leaving = Leaving(1)
        tickets = list(cache.claim(leaving, [b"a"], [0]).values())
        cache.begin(tickets)
        cache.claim(Leaving(1), [b"a"], [0])
        cache.claim(other, [b"a"], [0])
        cache.resolve((ticket, CachedPair(2.0, truncated=False)) for ticket in tickets)
        leaving.work("clean")
        leaving.note_tokens([])

    other.future.result(timeout=0)
