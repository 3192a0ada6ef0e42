"""Services on loopback, in a server of this process, over scorers that count words."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from rerank_plugins.reranker import Reranker
from rerank_plugins.service.app import create_app
from rerank_plugins.service.settings import ServiceSettings
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

QUERY = "red fox"
DOCUMENTS = ["a grey dog", "a red fox sleeps", "red sky"]
ORDER = [1, 2, 0]
LOGITS = [2.0, 1.0, 0.0]
SCORES = [0.8807970779778823, 0.7310585786300049, 0.5]
TOKENS = 9


class Gate:
    """A scorer's rule that waits once it is `shut`: ``entered`` says so, ``open`` lets it go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        # What opens a model scores a pair.
        self.open.set()

    def shut(self) -> None:
        self.open.clear()
        self.entered.clear()

    def __call__(self, query: str, document: str) -> float:
        self.entered.set()
        assert self.open.wait(60)
        return 1.0


@contextmanager
def running(app: FastAPI) -> Iterator[httpx.Client]:
    """Serve *app* on a free port of loopback; gives a client of it."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=20)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        (listener,) = server.servers
        port = listener.sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[..., httpx.Client]]:
    """Start services of scorers, settings of rerankers and those of the service.

    All end with the test.
    """
    with ExitStack() as stack:

        def start(
            scorer: FakeScorer | dict[str, FakeScorer] | None = None,
            settings: dict[str, Any] | None = None,
            **service: Any,
        ) -> httpx.Client:
            scorers = scorer if isinstance(scorer, dict) else {"fake": scorer or FakeScorer()}
            models = {name: Reranker(each, **(settings or {})) for name, each in scorers.items()}
            app = create_app(models, ServiceSettings(**service), registry=CollectorRegistry())
            return stack.enter_context(running(app))

        yield start


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A service as it comes, with one model, that all tests of a module share."""
    app = create_app({"fake": Reranker(FakeScorer())}, registry=CollectorRegistry())
    with running(app) as client:
        yield client
