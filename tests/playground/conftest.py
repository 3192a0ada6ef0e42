"""Playgrounds over scorers that count words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rerank_plugins.config import RerankConfig
from rerank_plugins.playground.asking import Playground
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def open_playground(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> Iterator[Callable[..., Playground]]:
    """Open a playground whose models are fake scorers, those given by name or plain ones."""
    opened: list[Playground] = []

    def open_it(
        *names: str, scorers: dict[str, FakeScorer] | None = None, **settings: object
    ) -> Playground:
        given = scorers or {}

        def open_fake(config: RerankConfig) -> FakeScorer:
            return given.get(config.model) or FakeScorer(name=config.model)

        monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_fake)
        # A setting that no other test has: an engine that still stands elsewhere is not shared.
        config = RerankConfig(queue_tokens=3_999_998, **settings)
        playground = Playground(config, names or ("one", "two")).__enter__()
        opened.append(playground)
        return playground

    yield open_it
    for playground in opened:
        playground.close()
