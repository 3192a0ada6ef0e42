"""A service while it runs: its models, its limits, whether it takes requests."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rerank_plugins.service.http_metrics import metrics_on
from rerank_plugins.service.keys import Keys
from rerank_plugins.service.models import Models

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

    from rerank_plugins.reranker import Reranker
    from rerank_plugins.service.settings import ServiceSettings


class Service:
    """What the routes of one application share; it closes the rerankers that it was given.

    All methods are called on the event loop, but for `drain`, which a signal handler may call.
    """

    def __init__(
        self,
        models: Mapping[str, Reranker],
        settings: ServiceSettings,
        registry: CollectorRegistry,
    ) -> None:
        self.models = Models(models, strict=settings.strict_models)
        self.settings = settings
        self.registry = registry
        self.keys = Keys(settings.api_keys)
        self.metrics = metrics_on(registry)
        self.created = int(time.time())
        self.in_flight = 0
        self.body_bytes = 0
        self.draining = False
        self.identities: dict[str, str] = {}
        self.instructed: list[str] = []
        self._open = False

    @property
    def ready(self) -> bool:
        """Whether every model is open and new requests are taken."""
        return self._open and not self.draining

    async def open(self) -> None:
        """Load every model and score a pair with each.

        Raises:
            ModelLoadError, MissingExtraError, ScoringError, ClosedError: one cannot.
        """
        for reranker in self.models.rerankers:
            await asyncio.to_thread(reranker.warmup)
        # Of open models: nothing is loaded to say so.
        for name in self.models:
            reranker = self.models.find(name)[1]
            self.identities[name] = reranker.identity
            if reranker.takes_instruction:
                self.instructed.append(name)
        self._open = True

    def drain(self) -> None:
        """Take no new requests; those that are being answered go on."""
        self.draining = True

    async def close(self) -> None:
        """Close every reranker."""
        self.drain()
        self._open = False
        for reranker in self.models.rerankers:
            await reranker.aclose()
