"""A shared cache in a real Redis server: stopped, started, held, full, and closed by a password."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("redis", reason="the extra redis is not installed")

import redis

from rerank_plugins import Reranker
from rerank_plugins.cache_address import Address
from rerank_plugins.testing import FakeScorer
from rerank_plugins.tiers.redis_store import open_redis
from tests.tiers.redis_server import BINARY, RedisServer
from tests.tiers.under_load import Load

if TYPE_CHECKING:
    from pathlib import Path

PATIENT = {"shared_cache_timeout_s": 30}
needs_redis = pytest.mark.skipif(BINARY is None, reason="no redis-server on this machine")


def logit(query: str, document: str) -> float:
    return len(document) + len(query) / 8


def cached(url: str, **settings: Any) -> list[bool]:
    """Rank with a new reranker; returns which documents came from the cache."""
    with Reranker(FakeScorer(logit), shared_cache=url, **{**PATIENT, **settings}) as reranker:
        return [d.cached for d in reranker.rank("fox", ["a", "b"])]


def test_a_server_that_is_stopped_and_started_under_load(
    redis_server: RedisServer, short_pauses: None, no_leaks: None
) -> None:
    with Reranker(FakeScorer(logit), shared_cache=redis_server.url, **PATIENT) as reranker:
        with Load(reranker, logit) as load:
            for _ in range(2):
                load.hits_come()
                load.fails(redis_server.stop, times=2)
                load.go_on()
                redis_server.start()
            load.hits_come()
        stats = reranker.stats()["fake"]
    assert stats.pairs_failed == 0
    assert stats.shared_skipped > 0


def test_a_server_that_hangs_is_waited_for_only_so_long(
    redis_server: RedisServer, short_pauses: None
) -> None:
    settings: dict[str, Any] = {"shared_cache": redis_server.url, "shared_cache_timeout_s": 0.5}
    with Reranker(FakeScorer(logit), **settings) as reranker, Load(reranker, logit) as load:
        load.hits_come()
        try:
            load.fails(lambda: os.kill(redis_server.pid, signal.SIGSTOP), times=2)
            load.go_on()
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        load.hits_come()


def test_a_server_that_is_down_at_first_is_found_later(
    redis_server: RedisServer, short_pauses: None
) -> None:
    redis_server.stop()
    with (
        Reranker(FakeScorer(logit), shared_cache=redis_server.url, **PATIENT) as reranker,
        Load(reranker, logit) as load,
    ):
        load.fails(lambda: None)
        redis_server.start()
        load.hits_come()


@needs_redis
def test_a_password_is_sent_and_a_wrong_one_is_a_server_that_is_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path, "--requirepass", "p@ss/word") as server:
        right = f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/0"
        wrong = f"redis://:wr0ng@127.0.0.1:{server.port}/0"

        assert [cached(right), cached(right)] == [[False, False], [True, True]]
        assert not caplog.text
        assert [cached(wrong), cached(wrong)] == [[False, False]] * 2
        assert [cached(server.url), cached(server.url)] == [[False, False]] * 2
    assert "WRONGPASS" in caplog.text or "AuthenticationError" in caplog.text
    assert "wr0ng" not in caplog.text


@needs_redis
@pytest.mark.skipif(os.name != "posix", reason="sockets with a path are POSIX's")
def test_a_socket_with_a_path(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--unixsocket", "redis.sock"):
        url = f"unix://{tmp_path}/redis.sock?db=2"

        assert [cached(url), cached(url)] == [[False, False], [True, True]]


@needs_redis
def test_a_server_that_is_full_is_still_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path, "--maxmemory-policy", "noeviction") as server:
        assert cached(server.url) == [False, False]
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1")
        assert cached(server.url) == [True, True]
        with Reranker(FakeScorer(logit), shared_cache=server.url, **PATIENT) as reranker:
            reranker.rank("fox", ["new"])
        assert "writing to the shared cache" in caplog.text
        assert "reading from" not in caplog.text


def test_a_network_that_swallows_everything_is_given_up_by_the_client_too() -> None:
    store = open_redis(Address("redis://127.0.0.1:1/0"), ttl_s=None, timeout_s=0.125)()
    settings = store._client.connection_pool.connection_kwargs
    store.close()

    assert settings["socket_timeout"] == settings["socket_connect_timeout"] == 0.125


def test_keys_say_whose_they_are_and_hold_no_text(redis_server: RedisServer) -> None:
    cached(redis_server.url)
    with redis.Redis.from_url(redis_server.url) as client:
        keys: Any = client.keys("*")
        values: Any = client.mget(keys)

    assert len(keys) == 2
    assert all(key.startswith(b"rerank-plugins:") for key in keys)
    assert not any(b"fox" in text for text in (*keys, *values))


def test_what_else_is_under_a_key_is_a_miss(redis_server: RedisServer) -> None:
    cached(redis_server.url)
    with redis.Redis.from_url(redis_server.url) as client:
        first, second = sorted(client.keys("*"))  # type: ignore[arg-type]  # bytes
        client.delete(first)
        client.lpush(first, "a list")
        client.set(second, "a text")
    assert cached(redis_server.url) == [False, False]
    assert cached(redis_server.url) == [True, True]


def test_a_life_is_told_to_the_server(redis_server: RedisServer) -> None:
    cached(redis_server.url, shared_cache_ttl_s=1000)
    with redis.Redis.from_url(redis_server.url) as client:
        lives: Any = [client.ttl(key) for key in client.keys("*")]  # type: ignore[union-attr]

    assert all(900 < life <= 1000 for life in lives)
    assert len(lives) == 2
