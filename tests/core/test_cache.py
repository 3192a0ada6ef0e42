"""The pair cache and the pairs on their way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.cache import PairCache, pair_key
from rerank_plugins.jobs import CachedPair, Job

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
