"""Which settings make two engines: each one either does, or acts around the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rerank_plugins import RerankConfig, Reranker
from rerank_plugins.events import Observer
from rerank_plugins.registry import ENGINES
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from pathlib import Path

OTHER_ENGINE: dict[str, object] = {
    "model": "owner/other",
    "backend": "onnx",
    "dialect": "tei",
    "remote_model": "other",
    "api_key": "another-key",
    "device": "cpu",
    "precision": "int8",
    "max_length": 64,
    "truncation": "only_second",
    "long_documents": "window",
    "window_overlap": 9,
    "window_score": "mean",
    "special_tokens": "parse",
    "family": "qwen3-reranker",
    "cache_entries": 3,
    "shared_cache": "folder",
    "shared_cache_ttl_s": 60.0,
    "shared_cache_bytes": 2**21,
    "shared_cache_timeout_s": 0.5,
    "batch_tokens": 100,
    "queue_tokens": 1000,
    "max_wait_s": 0.01,
    "replicas": 2,
    "revision": "v1",
    "local_files_only": True,
    "trust_remote_code": True,
    "allow_pickle": True,
}
SAME_ENGINE: dict[str, object] = {
    "activation": "logit",
    "normalizer": None,
    "language_detector": None,
    "text_hook": lambda text, language, role: text,
    "language_models": {"zh": "owner/other"},
    "timeout_s": 3.0,
    "when_full": "wait",
    "priority": "bulk",
    "on_error": "fallback",
    "fallback": ("lexical",),
    "observers": (Observer(),),
    "instruction": "find facts",
    "duplicates": "drop",
    "near_duplicates": 0.9,
    "max_candidates": 5,
}


def test_each_setting_is_of_one_kind() -> None:
    assert set(OTHER_ENGINE) | set(SAME_ENGINE) == set(RerankConfig.model_fields)


@pytest.mark.parametrize(
    ("name", "engines"),
    [(name, 2) for name in OTHER_ENGINE] + [(name, 1) for name in SAME_ENGINE],
)
def test_a_setting_that_changes_the_engine_makes_another(
    name: str, engines: int, no_leaks: None
) -> None:
    before = len(ENGINES)
    settings = {"model": "owner/one", name: (OTHER_ENGINE | SAME_ENGINE)[name]}

    with Reranker("owner/one"), Reranker(**settings):  # type: ignore[arg-type]  # by name
        assert len(ENGINES) == before + engines


def test_the_family_of_the_configured_model_is_not_that_of_one_it_routes_to(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    opened: list[RerankConfig] = []

    def open_fake(config: RerankConfig) -> FakeScorer:
        opened.append(config)
        return FakeScorer(name=config.model)

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_fake)
    with Reranker(
        "owner/one",
        family="qwen3-reranker",
        language_models={"zh": "owner/other"},
        language_detector=lambda text: "zh" if text == "other" else None,
    ) as reranker:
        reranker.rank("one", ["a document"])
        reranker.rank("other", ["a document"])

    assert [(config.model, config.family) for config in opened] == [
        ("owner/one", "qwen3-reranker"),
        ("owner/other", "auto"),
    ]


def test_an_edited_family_file_is_another_engine(tmp_path: Path, no_leaks: None) -> None:
    before = len(ENGINES)
    path = tmp_path / "mine.json"
    path.write_text("{}")

    with Reranker("owner/one", family=str(path)), Reranker("owner/one", family=str(path)):
        assert len(ENGINES) == before + 1
        path.write_text('{"base": "yes-no"}')
        with Reranker("owner/one", family=str(path)):
            assert len(ENGINES) == before + 2
        path.unlink()
        with Reranker("owner/one", family=str(path)):
            assert len(ENGINES) == before + 2
