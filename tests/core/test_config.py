"""Settings: checked, frozen, the same names everywhere."""

from __future__ import annotations

import pickle
from typing import get_type_hints

import pytest

from rerank_plugins import ConfigError, RerankConfig, Reranker
from rerank_plugins.config import RerankSettings
from rerank_plugins.events import Observer


def test_the_keyword_arguments_of_the_reranker_are_the_fields_of_the_config() -> None:
    fields = set(RerankConfig.model_fields) - {"model"}

    assert set(get_type_hints(RerankSettings)) == fields


def test_a_config_is_frozen_and_compares_by_value() -> None:
    config = RerankConfig(model="m", cache_entries=5)

    assert config == RerankConfig(model="m", cache_entries=5)
    assert config == pickle.loads(pickle.dumps(config))
    with pytest.raises(ValueError, match="frozen"):
        config.cache_entries = 6  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modle": "m"}, "modle: unknown setting"),
        (
            {"backend": "tensorflow"},
            "backend: .*'onnx', 'lexical' or 'remote', got 'tensorflow'",
        ),
        ({"precision": "int2"}, "precision: .*got 'int2'"),
        ({"max_length": 0}, "max_length: .*greater than or equal to 8, got 0"),
        ({"cache_entries": -1}, "cache_entries: .*got -1"),
        ({"batch_tokens": 0}, "batch_tokens: .*got 0"),
        ({"queue_tokens": 0}, "queue_tokens: .*got 0"),
        ({"timeout_s": 0}, "timeout_s: .*greater than 0, got 0"),
        ({"timeout_s": float("inf")}, "timeout_s: .*less than or equal to 4000000, got inf"),
        ({"model": "  "}, "model is blank"),
        ({"backend": "lexical", "model": "some/model"}, 'backend="lexical" loads no model'),
        ({"backend": "onnx", "model": "lexical"}, "no ONNX file"),
        ({"backend": "torch"}, 'model="embedded" has no PyTorch weights'),
        ({"backend": "torch", "model": "lexical"}, 'model="lexical" has no PyTorch weights'),
        ({"backend": "torch", "model": "a/model.onnx"}, 'backend="torch" runs no ONNX file'),
        (
            {"backend": "onnx", "model": "m", "precision": "int4"},
            'backend="onnx" does not take precision="int4"; take "int8"',
        ),
        (
            {"backend": "onnx", "model": "m", "precision": "bf16"},
            'backend="onnx" does not take precision="bf16"; take "fp32"',
        ),
        (
            {"model": "a/model.onnx", "precision": "int4"},
            "the ONNX file 'a/model.onnx' does not take precision=\"int4\"; leave it out",
        ),
        ({"model": "model.onnx", "precision": "bf16"}, 'does not take precision="bf16"'),
        (
            {"backend": "onnx", "model": "m", "device": "mps"},
            'backend="onnx" does not take device="mps"',
        ),
        ({"precision": "int8", "device": "mps"}, 'precision="int8" does not take device="mps"'),
        ({"precision": "int4", "device": "mps"}, 'precision="int4" does not take device="mps"'),
        ({"device": "mps:0"}, "device: expected .*\"mps\", got 'mps:0'"),
        ({"trust_remote_code": "perhaps"}, "trust_remote_code: .*got 'perhaps'"),
        ({"timeout_s": True}, "timeout_s: expected a number, got True"),
        ({"cache_entries": False}, "cache_entries: expected a number, got False"),
        ({"batch_tokens": True}, "batch_tokens: expected a number, got True"),
        ({"queue_tokens": True}, "queue_tokens: expected a number, got True"),
        ({"language_models": {"ZH": "m"}}, "language_models: 'ZH' is not a lower-case ISO 639-1"),
        ({"normalizer": 3}, "normalizer: .*got 3"),
        ({"replicas": 0}, "replicas: expected a number from 1 to 256, or a list of .*, got 0"),
        ({"replicas": 10**9}, "replicas: .*from 1 to 256"),
        ({"replicas": True}, "replicas: expected a number, got True"),
        ({"replicas": 2.5}, "^replicas: expected a whole number, or a list of devices, got 2.5$"),
        ({"replicas": ["auto"]}, "replicas: a device of a replica is"),
        ({"replicas": {"cpu", "mps"}}, "replicas: expected a whole number, or a list of devices"),
        ({"fallback": {"a", "b"}}, "^fallback: expected a list of names, got"),
        ({"fallback": [None]}, r"^fallback: expected a list of names, got \[None\]$"),
        ({"fallback": ["embedded", " "]}, "fallback: a name is blank"),
        ({"fallback": ["retrieval-order"]}, "fallback: .*it is written 'retrieval_order'"),
        ({"fallback": ["Lexical"]}, "fallback: .*it is written 'lexical'"),
        ({"on_error": "fallback", "fallback": []}, "needs a fallback; name at least one"),
        ({"observers": Observer()}, r"observers: .*as in \[observer\], got 'Observer'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed_and_seen(
    settings: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        RerankConfig(**settings)
    with pytest.raises(ConfigError, match=named):
        Reranker(**settings)  # type: ignore[arg-type]  # the point of the test


def test_what_is_plugged_in_is_shown_by_its_type_alone() -> None:
    class Secretive(Observer):
        def __repr__(self) -> str:
            return "my password"

    with pytest.raises(ConfigError) as caught:
        RerankConfig(observers=Secretive())

    assert "password" not in str(caught.value)
    assert "password" not in repr(RerankConfig(observers=[Secretive()]))
    assert "Secretive" in repr(RerankConfig(observers=[Secretive()]))


def test_names_of_a_list_may_stand_apart() -> None:
    config = RerankConfig.from_env(
        {
            "RERANK_PLUGINS_FALLBACK": " lexical , retrieval_order ",
            "RERANK_PLUGINS_REPLICAS": "cpu, cpu",
        }
    )

    assert config.fallback == ("lexical", "retrieval_order")
    assert config.replicas == ("cpu", "cpu")
    assert RerankConfig(fallback=[" lexical"]) == RerankConfig(fallback=("lexical",))
    assert RerankConfig.from_env({"RERANK_PLUGINS_REPLICAS": " 2 "}).replicas == 2


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a name, a folder or a Scorer, got 42"):
        Reranker(42)  # type: ignore[arg-type]  # the point of the test


def test_settings_have_a_json_schema_without_the_functions() -> None:
    properties = RerankConfig.model_json_schema()["properties"]

    assert set(properties) == set(RerankConfig.model_fields) - {"text_hook", "observers"}
    assert "default" in str(properties["normalizer"])


def test_the_environment_is_read_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_PLUGINS_CACHE_ENTRIES", "7")
    monkeypatch.setenv("RERANK_PLUGINS_LANGUAGE_MODELS", "zh=some/model, de=lexical")

    config = RerankConfig.from_env()

    assert config.cache_entries == 7
    assert config.language_models == {"zh": "some/model", "de": "lexical"}
    assert RerankConfig().cache_entries == 50_000


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("CACHE_ENTRIES", "many", "cache_entries: .*got 'many'"),
        ("LANGUAGE_MODELS", "zh", "expected LANGUAGE=MODEL, got 'zh'"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RerankConfig.from_env({f"RERANK_PLUGINS_{name}": value})
