"""What holds the values of a shared cache: a folder on disk, or a Redis server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from rerank_plugins.cache_address import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_plugins.config import RerankConfig


class Store(Protocol):
    """Values by key, as they were written; opened, used and closed by one thread.

    Whatever a method raises, the store is closed and opened anew before it is asked again.
    """

    def get_many(self, keys: Sequence[bytes]) -> Sequence[object]:
        """Return the value of each key, None where there is none."""

    def set_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep values by their keys, in place of older ones."""

    def close(self) -> None:
        """Let go of files and connections."""


def find_store(config: RerankConfig) -> Callable[[], Store]:
    """Return what opens the store that *config* names; nothing is asked before it is used.

    Raises:
        MissingExtraError: the package for it is not installed.
        ConfigError: the URL is none of Redis.
    """
    address = Address(config.shared_cache or "")
    ttl_s = config.shared_cache_ttl_s
    if address.is_url:
        from rerank_plugins.tiers.redis_store import open_redis

        return open_redis(address, ttl_s=ttl_s, timeout_s=config.shared_cache_timeout_s)
    from rerank_plugins.tiers.disk_store import DiskStore

    return partial(DiskStore, address, ttl_s=ttl_s, size_limit=config.shared_cache_bytes)
