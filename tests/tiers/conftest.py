"""A Redis server, and pauses after a failure that a test can wait for."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.tiers import outage, shared
from tests.tiers.redis_server import BINARY, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _slow_machines_may_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was scored is written before the next reranker looks for it, however long it takes."""
    monkeypatch.setattr(shared, "FLUSH_WAIT_S", 30.0)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(outage, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(outage, "LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    if BINARY is None:
        pytest.skip("no redis-server on this machine")
    if importlib.util.find_spec("redis") is None:
        pytest.skip("the extra redis is not installed")
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture(params=["folder", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A shared cache of each kind."""
    if request.param == "folder":
        return str(tmp_path / "shared")
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url
