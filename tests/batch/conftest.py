"""Batches over a scorer that counts words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from rerank_plugins.batch.options import BatchOptions
from rerank_plugins.batch.running import BatchResult, run_batch
from rerank_plugins.config import RerankConfig
from rerank_plugins.testing import FakeScorer

pq = pytest.importorskip("pyarrow.parquet", reason="batches need pyarrow")

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

QUERIES = [
    {
        "query_id": f"q{i}",
        "query": f"red fox {i}",
        "documents": [
            {"id": f"d{i}-{j}", "text": text}
            for j, text in enumerate(["blue sky", "a red fox", f"red {i}"][: 1 + i % 3])
        ],
    }
    for i in range(10)
]


class RunBatch(Protocol):
    def __call__(self, source: Path, output: Path, **options: Any) -> BatchResult: ...


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> FakeScorer:
    """What every model opens as; a test may set its fields before it is opened."""
    fake = FakeScorer()
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", lambda config: fake)
    return fake


@pytest.fixture
def batch(scorer: FakeScorer) -> RunBatch:
    """Run a batch in small chunks; keywords of `run_batch` are told from options by name."""

    def run(source: Path, output: Path, **options: Any) -> BatchResult:
        told = {name: options.pop(name) for name in ("resume", "force") if name in options}
        config = options.pop("config", RerankConfig(model="fake"))
        return run_batch(
            source,
            output,
            config,
            BatchOptions(chunk_pairs=4)
            if not options
            else BatchOptions(**{"chunk_pairs": 4} | options),
            **told,
        )

    return run


def write_lines(path: Path, values: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "run.jsonl", QUERIES)
