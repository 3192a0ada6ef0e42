"""Shared engines: equal configurations get one, and the last to leave closes it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from rerank_plugins.engine import Engine


@dataclass(slots=True)
class _Shared:
    engine: Engine
    users: int


class Registry:
    """Engines by key, with a count of their users."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared] = {}
        # A finalizer may release an engine in the middle of another call of the same thread.
        self._lock = threading.RLock()

    def lease(self, key: Hashable, make: Callable[[], Engine]) -> Engine:
        """Return the engine of *key*, made by *make* where there is none; owes a `release`."""
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                shared = self._shared[key] = _Shared(make(), 0)
            shared.users += 1
            return shared.engine

    def release(self, key: Hashable, *, wait: bool = True) -> None:
        """Give a lease back; the last one closes the engine."""
        with self._lock:
            shared = self._shared[key]
            shared.users -= 1
            if shared.users:
                return
            del self._shared[key]
        shared.engine.close(wait=wait)

    def __len__(self) -> int:
        return len(self._shared)


ENGINES = Registry()
"""The engines of this process."""
