"""A shared cache in a Redis server."""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from rerank_plugins.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_plugins.cache_address import Address


def open_redis(
    address: Address, *, ttl_s: float | None, timeout_s: float
) -> Callable[[], RedisStore]:
    """Return what makes a client; it connects when it is first used.

    Raises:
        MissingExtraError: the package is not installed.
        ConfigError: an option in the URL is none.
    """
    try:
        redis: Any = importlib.import_module("redis")
        backoff, retry = map(importlib.import_module, ("redis.backoff", "redis.retry"))
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "redis":
            raise
        raise MissingExtraError(
            package="redis", extra="redis", needed_for="a shared cache in Redis"
        ) from None
    make_client = partial(
        redis.Redis.from_url,
        str(address),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # At once and once: a server that was restarted is found, one that is down costs no sleep.
        retry=retry.Retry(backoff.NoBackoff(), 1),
        protocol=2,
    )
    make_store = partial(RedisStore.make, make_client, ttl_s)
    try:
        make_store().close()
    # Its words may hold a value of the URL.
    except (ValueError, TypeError):
        raise ConfigError(
            f"shared_cache: the options of the URL cannot be read, got {address!r}"
        ) from None
    return make_store


class RedisStore:
    """One connection to a Redis server, which bounds its memory itself (``maxmemory``)."""

    def __init__(self, client: Any, ttl_s: float | None) -> None:  # noqa: ANN401
        self._client = client
        self._ttl_ms = None if ttl_s is None else max(1, round(ttl_s * 1000))

    @classmethod
    def make(cls, make_client: Callable[[], Any], ttl_s: float | None) -> Self:
        """Make a client of its own."""
        return cls(make_client(), ttl_s)

    def get_many(self, keys: Sequence[bytes]) -> Sequence[object]:
        """Return the values, in one round trip."""
        found: Sequence[object] = self._client.mget(keys)
        return found

    def set_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Write all in one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        for key, value in items:
            pipeline.set(key, value, px=self._ttl_ms)
        pipeline.execute()

    def close(self) -> None:
        """Hang up."""
        self._client.close()
