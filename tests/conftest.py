"""Fixtures of the whole suite."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from rerank_plugins import Reranker
from rerank_plugins.registry import ENGINES
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A deadline would fail tests on a busy machine, and time is not what they are about.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the environment of whoever runs it."""
    for name in list(os.environ):
        if name.startswith("RERANK_PLUGINS_") and name != "RERANK_PLUGINS_DATA":
            monkeypatch.delenv(name)


@pytest.fixture
def open_reranker() -> Iterator[Callable[..., tuple[Reranker, FakeScorer]]]:
    """Open rerankers over fake scorers; all are closed when the test ends."""
    opened: list[Reranker] = []

    def open_it(
        scorer: FakeScorer | None = None, **settings: object
    ) -> tuple[Reranker, FakeScorer]:
        scorer = scorer or FakeScorer()
        reranker = Reranker(scorer, **settings)  # type: ignore[arg-type]  # any setting, by name
        opened.append(reranker)
        return reranker, scorer

    yield open_it
    for reranker in opened:
        reranker.close()


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test leaves no engine and no thread of ours behind."""
    gc.collect()
    engines = len(ENGINES)
    threads = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("rerank-plugins"):
            thread.join(timeout=10)
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not {name for name in left if name.startswith("rerank-plugins")}
    assert len(ENGINES) == engines


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real retrieval data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RERANK_PLUGINS_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "dev").is_dir():
        pytest.skip(f"no retrieval data in {folder}; set RERANK_PLUGINS_DATA")
    return folder
