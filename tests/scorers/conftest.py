"""Fixtures of the scorers' tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.config import RerankConfig
from rerank_plugins.scorers.onnx.scorer import OnnxScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def open_model(tmp_path: Path) -> Iterator[Callable[..., OnnxScorer]]:
    """Open the model in tmp_path with given settings; closed when the test ends."""
    opened = []

    def open_it(**settings: Any) -> OnnxScorer:
        opened.append(OnnxScorer.open(RerankConfig(**{"model": str(tmp_path)} | settings)))
        return opened[-1]

    yield open_it
    for scorer in opened:
        scorer.close()
