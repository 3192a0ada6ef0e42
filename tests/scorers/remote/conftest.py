"""Rerankers over servers on loopback."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import Reranker
from tests.loopback_rerankers import RerankServer, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def serve() -> Iterator[Callable[..., RerankServer]]:
    """Start servers by dialect; all end with the test."""
    with ExitStack() as stack:
        yield lambda dialect, **what: stack.enter_context(serving(dialect, **what))


@pytest.fixture
def connect(serve: object, no_leaks: None) -> Iterator[Callable[..., Reranker]]:
    """Open rerankers over servers or addresses; all are closed before the servers end."""
    opened: list[Reranker] = []

    def open_it(*servers: RerankServer | str, **settings: Any) -> Reranker:
        addresses = [each if isinstance(each, str) else each.url for each in servers]
        # What is scored is what is given, and no two tests share an engine: ports may come again.
        settings = {"normalizer": None, "language_detector": None, **settings}
        opened.append(Reranker(",".join(addresses), **settings))
        return opened[-1]

    yield open_it
    for reranker in opened:
        reranker.close()
