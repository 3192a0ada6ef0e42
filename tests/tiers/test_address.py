"""Where a shared cache is: what is accepted, and that no secret is shown anywhere."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from rerank_plugins import ConfigError, RerankConfig, Reranker
from rerank_plugins.cache_address import Address
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.testing import FakeScorer

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("cache", "cache"),
        ("/var/cache/my app", "/var/cache/my app"),
        ("C:\\cache", "C:\\cache"),
        ("redis://", "redis://"),
        ("redis://host", "redis://host"),
        (f"redis://:{SECRET}@host:6379/3", "redis://…@host:6379/3"),
        (f"rediss://{SECRET}:{SECRET}@host/0?ssl_cert_reqs=none", "rediss://…@host/0"),
        (f"redis://host/0?password={SECRET}", "redis://host/0"),
        (f"unix://me@/run/redis.sock?password={SECRET}", "unix:///run/redis.sock"),
    ],
)
def test_an_address_is_kept_whole_and_shown_without_its_secrets(value: str, shown: str) -> None:
    config = RerankConfig(shared_cache=value)

    assert str(config.shared_cache) == value
    assert repr(config.shared_cache) == repr(shown)
    assert f"shared_cache={shown!r}" in repr(config)
    assert RerankConfig.from_env({"RERANK_PLUGINS_SHARED_CACHE": value}) == config
    assert pickle.loads(pickle.dumps(config)) == config


def _validated(**settings: object) -> object:
    return RerankCompressor.model_validate(settings)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (" ", "blank; leave it out"),
        (f"memcached://u:{SECRET}@host", 'expected a folder, or a URL .*"redis://"'),
        (f"redis:/u:{SECRET}@host", "expected a folder, or a URL"),
        (f"u:{SECRET}@host:6379", "expected a folder, or a URL"),
        ("localhost:6379", "expected a folder, or a URL"),
        (f"redis://u:{SECRET}/x@host:6379", "cannot be read; write special characters"),
        (f"redis://u:{SECRET}#x@host", "cannot be read; write special characters"),
        (f"redis://:{SECRET}", "cannot be read; write special characters"),
        (f"redis://[{SECRET}", "cannot be read; write special characters"),
        (f"redis://host/{SECRET}", "number of a database"),
        (f"unix://u:{SECRET}@", "names no socket"),
        ("/cache/$HOME", r"\$"),
    ],
)
def test_a_wrong_address_is_named_and_shows_no_secret(value: str, said: str) -> None:
    for make in (RerankConfig, Reranker, RerankCompressor, RerankPostprocessor, _validated):
        with pytest.raises(ValueError, match=said) as caught:
            make(shared_cache=value)
        assert "shared_cache" in str(caught.value)
        assert SECRET not in f"{caught.value} {caught.value!r}"


def test_an_error_of_other_settings_shows_no_secret() -> None:
    for settings in ({"model": " "}, {"backend": "onnx", "model": "lexical"}):
        with pytest.raises(ValueError, match="model") as caught:
            # Last: pydantic shows the beginning and the end of what it was given.
            RerankCompressor(**settings, shared_cache=f"redis://:{SECRET}@host")
        assert SECRET not in str(caught.value)
        with pytest.raises(ValueError, match="model") as caught:
            RerankPostprocessor(**settings, shared_cache=f"redis://:{SECRET}@host")
        assert SECRET not in str(caught.value)


def test_a_door_to_which_an_address_was_assigned_shows_no_secret() -> None:
    door = RerankCompressor(model="lexical")
    door.shared_cache = f"redis://:{SECRET}@host"

    assert SECRET not in repr(door)
    assert "redis://…@host" in repr(door)


def test_a_folder_may_be_a_path() -> None:
    assert RerankConfig(shared_cache=Path("a/b")).shared_cache == str(Path("a/b"))


@pytest.mark.parametrize(
    "settings",
    [
        {"shared_cache": 3},
        {"shared_cache_ttl_s": 0},
        {"shared_cache_ttl_s": True},
        {"shared_cache_ttl_s": 1e12},
        {"shared_cache_bytes": 1000},
        {"shared_cache_timeout_s": 0},
        {"shared_cache_timeout_s": float("nan")},
        {"shared_cache_timeout_s": 1000},
    ],
)
def test_settings_of_a_shared_cache_have_a_range(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"^{name}: "):
        RerankConfig(**settings)


def test_options_of_a_url_that_are_none_are_an_error_without_them() -> None:
    pytest.importorskip("redis")
    url = f"redis://:{SECRET}@127.0.0.1:1/0?socket_timeout={SECRET}"
    with Reranker(FakeScorer(), shared_cache=url) as reranker:
        with pytest.raises(ConfigError, match="options of the URL cannot be read") as caught:
            reranker.rank("fox", ["a fox"])
        assert SECRET not in str(caught.value)


def test_the_log_of_a_server_that_is_down_shows_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("redis")
    caplog.set_level(logging.DEBUG)
    url = f"redis://me:{SECRET}@127.0.0.1:1/0"
    with Reranker(FakeScorer(), shared_cache=url) as reranker:
        assert reranker.rank("fox", ["a fox"])[0].logit == 1.0

    assert "reading from the shared cache redis://…@127.0.0.1:1/0 fails" in caplog.text
    assert SECRET not in caplog.text


def test_a_folder_that_only_looks_like_a_url_is_shown_without_what_may_be_a_secret() -> None:
    assert Address(f"redis:/me:{SECRET}@host").shown == "redis:…"
