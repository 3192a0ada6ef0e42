"""Shared engines: equal configurations get one, and the last to leave closes it."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_plugins.cache_address import Address
from rerank_plugins.config import RerankConfig
from rerank_plugins.engine import Engine
from rerank_plugins.errors import ClosedError, ConfigError
from rerank_plugins.options import EMBEDDED, LEXICAL, Backend, Dialect
from rerank_plugins.scorers import open_scorer
from rerank_plugins.server_addresses import is_remote
from rerank_plugins.tiers.shared import SharedCache
from rerank_plugins.tiers.store import find_store

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from rerank_plugins.dispatcher import Dispatcher
    from rerank_plugins.protocols import AnyScorer

_SHARED_CACHE = (
    "shared_cache",
    "shared_cache_ttl_s",
    "shared_cache_bytes",
    "shared_cache_timeout_s",
)

_ENGINE_SETTINGS = (
    "backend",
    "dialect",
    "remote_model",
    "api_key",
    "device",
    "precision",
    "max_length",
    "truncation",
    "long_documents",
    "window_overlap",
    "window_score",
    "special_tokens",
    "family",
    "cache_entries",
    *_SHARED_CACHE,
    "batch_tokens",
    "queue_tokens",
    "max_wait_s",
    "replicas",
    "revision",
    "local_files_only",
    "trust_remote_code",
    "allow_pickle",
)
"""The settings that make two engines different, besides the model; the rest act around them."""

_QUEUE_SETTINGS = ("cache_entries", *_SHARED_CACHE, "batch_tokens", "queue_tokens", "max_wait_s")
"""Those that make a difference where the scorer is a user's own."""

_SHARED_BOUNDS = ("cache_entries", "queue_tokens")
"""Those that bound memory, and so hold for every engine of a reranker."""


@dataclass(slots=True)
class _Shared:
    engine: Engine
    users: int
    settings: Hashable


class Registry:
    """Engines by key, with a count of their users."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared] = {}
        # A worker holds its dispatcher as long as it runs; once it has ended, nothing does.
        self._ending: dict[int, weakref.ref[Dispatcher]] = {}
        # By thread: two may fork at the same time.
        self._due_in_parent: dict[int, list[Callable[[], None]]] = {}
        # A finalizer may release an engine in the middle of another call of the same thread.
        self.lock = threading.RLock()

    def before_fork(self) -> None:
        """Wait until nothing is half written that a child would inherit, for a while."""
        with self.lock:
            engines = [shared.engine for shared in self._shared.values()]
        due = self._due_in_parent[threading.get_ident()] = []
        due.extend(engine.before_fork() for engine in engines)

    def after_fork_in_parent(self) -> None:
        """Go on where nothing has changed."""
        for go_on in self._due_in_parent.pop(threading.get_ident(), ()):
            go_on()

    def after_fork(self) -> None:
        """Make every engine usable in a child process."""
        self.lock = threading.RLock()
        self._ending, self._due_in_parent = {}, {}
        for shared in self._shared.values():
            shared.engine.after_fork()

    def lease(
        self, key: Hashable, make: Callable[[], Engine], *, settings: Hashable = None
    ) -> Engine:
        """Return the engine of *key*, made by *make* where there is none; owes a `release`.

        Raises:
            ConfigError: there is one, but of other *settings*.
        """
        with self.lock:
            shared = self._shared.get(key)
            if shared is None:
                shared = self._shared[key] = _Shared(make(), 0, settings)
            if shared.settings != settings:
                raise ConfigError(
                    f"this Scorer is in use by a reranker of other {', '.join(_QUEUE_SETTINGS)}, "
                    "and one scorer has one queue"
                )
            shared.users += 1
            return shared.engine

    def release(self, key: Hashable, *, wait: bool = True) -> None:
        """Give a lease back; the last one closes the engine."""
        with self.lock:
            shared = self._shared[key]
            shared.users -= 1
            if shared.users:
                return
            del self._shared[key]
        dispatcher = shared.engine.close(wait=wait)
        if dispatcher is not None and not wait:
            self._remember_ending(dispatcher)

    def _remember_ending(self, dispatcher: Dispatcher) -> None:
        with self.lock:
            for number, ref in list(self._ending.items()):
                if ref() is None:
                    self._ending.pop(number, None)
            self._ending[id(dispatcher)] = weakref.ref(dispatcher)

    def close_all(self) -> None:
        """Close every engine: a thread that dies inside native code takes the process with it.

        Those that were let go before, and still end, are waited for too, each for a while.
        """
        with self.lock:
            engines = [shared.engine for shared in self._shared.values()]
            ending = [ref() for ref in list(self._ending.values())]
        for engine in engines:
            engine.close()
        for dispatcher in ending:
            if dispatcher is not None:
                dispatcher.close()

    def heard_by(self, observer: object) -> list[Engine]:
        """Return the engines of which *observer* hears."""
        with self.lock:
            engines = [shared.engine for shared in self._shared.values()]
        return [engine for engine in engines if observer in engine.audience]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._shared

    def __len__(self) -> int:
        return len(self._shared)


ENGINES = Registry()
"""The engines of this process."""

atexit.register(ENGINES.close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=ENGINES.before_fork,
        after_in_parent=ENGINES.after_fork_in_parent,
        after_in_child=ENGINES.after_fork,
    )


class Leases:
    """The engines that one reranker holds, by model name, until `release`.

    The primary engine serves the configured model, or *own*, a scorer that the user made; others
    are leased when a query is first routed to them.
    """

    def __init__(self, config: RerankConfig, own: AnyScorer | None) -> None:
        self._config = config
        self._own = own
        self._held: dict[str, tuple[Hashable, Engine]] = {}
        self._released = False
        self.primary = self.lease(LEXICAL if config.backend is Backend.LEXICAL else config.model)

    def lease(self, model: str) -> Engine:
        """Return the engine that serves *model*.

        Raises:
            ClosedError: after `release`.
        """
        with ENGINES.lock:
            self.check_open()
            if model not in self._held:
                key, settings, make = self._engine_of(model)
                engine = ENGINES.lease(key, make, settings=settings)
                self._held[model] = key, engine
                engine.audience.join(id(self), tuple(self._config.observers))
            return self._held[model][1]

    def check_open(self) -> None:
        """Raise `ClosedError` after `release`."""
        if self._released:
            raise ClosedError(f"the reranker for {self._config.model!r} is closed; make a new one")

    def engines(self) -> dict[str, Engine]:
        """Return what is held, the primary first."""
        with ENGINES.lock:
            return {model: engine for model, (_, engine) in self._held.items()}

    def release(self, *, wait: bool = False) -> None:
        """Give every engine back; the last user's release closes it."""
        with ENGINES.lock:
            self._released = True
            held, self._held = self._held, {}
        if held and self._own is not None:
            # First: closing takes its time, and meanwhile nobody may open the scorer again.
            _remember_given_up(self._own)
        for key, engine in held.values():
            engine.audience.leave(id(self))
            ENGINES.release(key, wait=wait)

    def _engine_of(self, model: str) -> tuple[Hashable, Hashable, Callable[[], Engine]]:
        """Return key and settings of the engine that serves *model*, and how to make it."""
        config, own = self._config, self._own
        openers: Sequence[Callable[[], AnyScorer]]
        key: Hashable
        settings: Hashable = None
        if own is not None and model == config.model:
            if config.replicas != 1:
                raise ConfigError(
                    f"replicas: a Scorer of your own is one replica, got {config.replicas!r}; "
                    "name a model, or leave it out"
                )
            key, openers = ("own scorer", id(own)), [partial(_itself, own)]
            settings = tuple(getattr(config, name) for name in _QUEUE_SETTINGS)
            if key not in ENGINES and _was_given_up(own):
                raise ConfigError(
                    f"the Scorer {own.name!r} was closed with its last reranker; open a new one"
                )
        else:
            if model != config.model:
                config = config_of_another(model, config)
            settings_of_it = (getattr(config, name) for name in _ENGINE_SETTINGS)
            key = (model, _content_of(config.family), *settings_of_it)
            openers = [partial(open_scorer, each) for each in _replicas(config)]
        make = partial(
            Engine,
            model,
            openers[0],
            cache_entries=config.cache_entries,
            batch_tokens=config.batch_tokens,
            queue_tokens=config.queue_tokens,
            max_wait_s=config.max_wait_s,
            make_shared=partial(_shared_cache, model, config) if config.shared_cache else None,
            more_replicas=openers[1:],
            reopens=own is None or model != config.model,
        )
        return key, settings, make


def config_of_another(model: str, config: RerankConfig) -> RerankConfig:
    """Return the settings of a *model* that *config* routes or falls back to."""
    # These speak of the model that was configured.
    update: dict[str, object] = {
        "backend": Backend.AUTO,
        "dialect": Dialect.AUTO,
        "remote_model": None,
        # A secret between us and one server, never to be told to another.
        "api_key": None,
        "revision": None,
        "family": "auto",
    }
    lexical = model == LEXICAL and config.backend is not Backend.LEXICAL
    if model == EMBEDDED or lexical or is_remote(model):
        # So do its devices, lengths and budgets, where the other model ships with this package or
        # is a server's: "cuda" is an error to one that runs on the CPU.
        own = RerankConfig(model=model)
        update = {n: getattr(own, n) for n in _ENGINE_SETTINGS if n not in _SHARED_BOUNDS}
    return config.model_copy(update={**update, "model": model})


def _content_of(family: str) -> str:
    """Return a digest of the file that *family* names: an edited one is another family.

    Blank where it names none. A file that is not there is complained of when the scorer opens.
    """
    if not family.endswith(".json"):
        return ""
    try:
        content = Path(family).expanduser().read_bytes()
    except (OSError, RuntimeError, ValueError):
        return ""
    return blake2b(content, digest_size=16).hexdigest()


def _shared_cache(model: str, config: RerankConfig) -> SharedCache:
    return SharedCache(
        model,
        Address(config.shared_cache or "").shown,
        partial(find_store, config),
        timeout_s=config.shared_cache_timeout_s,
    )


def _replicas(config: RerankConfig) -> list[RerankConfig]:
    """Return the settings of each replica: they differ in the device at most."""
    if isinstance(config.replicas, int):
        return [config] * config.replicas
    return [config.model_copy(update={"device": device}) for device in config.replicas]


def _itself(own: AnyScorer) -> AnyScorer:
    return own


# Scorers that were closed; its old worker may still be inside one, so it must not get another.
_GIVEN_UP: weakref.WeakValueDictionary[int, AnyScorer] = weakref.WeakValueDictionary()


def _remember_given_up(own: AnyScorer) -> None:
    with contextlib.suppress(TypeError):
        # Some objects cannot be referred to weakly; those go unchecked.
        _GIVEN_UP[id(own)] = own


def _was_given_up(own: AnyScorer) -> bool:
    return _GIVEN_UP.get(id(own)) is own
