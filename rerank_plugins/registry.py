"""Shared engines: equal configurations get one, and the last to leave closes it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rerank_plugins.config import LEXICAL, Backend
from rerank_plugins.engine import Engine
from rerank_plugins.errors import ClosedError
from rerank_plugins.scorers import open_scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.protocols import AnyScorer

_ENGINE_SETTINGS = (
    "device",
    "precision",
    "max_length",
    "truncation",
    "cache_entries",
    "batch_tokens",
    "queue_tokens",
    "revision",
    "local_files_only",
)
"""The settings that make two engines different, besides the model; the rest act around them."""


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


class Leases:
    """The engines that one reranker holds, by model name, until `release`.

    The primary engine serves the configured model, or *own*, a scorer that the user made; others
    are leased when a query is first routed to them.
    """

    def __init__(self, config: RerankConfig, own: AnyScorer | None) -> None:
        self._config = config
        self._own = own
        # A finalizer may release in the middle of another call of the same thread.
        self._lock = threading.RLock()
        self._held: dict[str, tuple[Hashable, Engine]] = {}
        self._released = False
        self.primary = self.lease(LEXICAL if config.backend is Backend.LEXICAL else config.model)

    def lease(self, model: str) -> Engine:
        """Return the engine that serves *model*.

        Raises:
            ClosedError: after `release`.
        """
        with self._lock:
            self.check_open()
            if model not in self._held:
                key, make = self._engine_of(model)
                self._held[model] = key, ENGINES.lease(key, make)
            return self._held[model][1]

    def check_open(self) -> None:
        """Raise `ClosedError` after `release`."""
        if self._released:
            raise ClosedError(f"the reranker for {self._config.model!r} is closed; make a new one")

    def engines(self) -> dict[str, Engine]:
        """Return what is held, the primary first."""
        with self._lock:
            return {model: engine for model, (_, engine) in self._held.items()}

    def release(self, *, wait: bool = False) -> None:
        """Give every engine back; the last user's release closes it."""
        with self._lock:
            self._released = True
            held, self._held = self._held, {}
        for key, _ in held.values():
            ENGINES.release(key, wait=wait)

    def _engine_of(self, model: str) -> tuple[Hashable, Callable[[], Engine]]:
        """Return the registry key of the engine that serves *model*, and how to make it."""
        config, own = self._config, self._own
        open_it: Callable[[], AnyScorer]
        key: Hashable
        if own is not None and model == config.model:
            key, open_it = ("own scorer", id(own)), partial(_itself, own)
        else:
            if model != config.model:
                # These two speak of the model that was configured, not of one it routes to.
                config = config.model_copy(
                    update={"model": model, "backend": Backend.AUTO, "revision": None}
                )
            key = (model, *(getattr(config, name) for name in _ENGINE_SETTINGS))
            open_it = partial(open_scorer, config)
        make = partial(
            Engine,
            model,
            open_it,
            cache_entries=config.cache_entries,
            batch_tokens=config.batch_tokens,
            queue_tokens=config.queue_tokens,
        )
        return key, make


def _itself(own: AnyScorer) -> AnyScorer:
    return own
