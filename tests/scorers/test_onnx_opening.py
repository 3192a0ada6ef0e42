"""Opening an ONNX model: what settings and machine decide, and what is said of a bad model."""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING

import onnx
import pytest

from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import (
    ConfigError,
    MissingExtraError,
    ModelLoadError,
)
from rerank_plugins.scorers import open_scorer
from rerank_plugins.scorers.onnx.choices import choose_device
from tests.tiny_models import MAX_TOKENS, Kind, make_graph, make_tokenizer, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_plugins.scorers.onnx.scorer import OnnxScorer

KINDS: tuple[Kind, ...] = ("bert", "xlm-roberta", "roberta")
BOTH = ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "logit"),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            "sigmoid",
        ),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "logit"),
        ({"sbert_ce_default_activation_function": None}, "sigmoid"),
        ({"sentence_transformers": {"version": "5.0"}}, "sigmoid"),
    ],
)
def test_activation_is_what_the_config_names(
    config: dict[str, object],
    expected: str,
    tmp_path: Path,
    open_model: Callable[..., OnnxScorer],
) -> None:
    write_model(tmp_path, **config)

    assert open_model().activation == expected


def test_an_unknown_activation_must_be_set(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, sentence_transformers={"activation_fn": "torch.nn.Tanh"})

    with pytest.raises(ModelLoadError, match=r"torch\.nn\.Tanh.*set activation to"):
        open_model()
    open_model(activation="sigmoid")


@pytest.mark.parametrize("kind", KINDS)
def test_max_length_is_the_models_own_limit(
    kind: Kind, tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    """RoBERTa kinds lose padding_idx + 1 of their positions: 66 positions hold 64 tokens."""
    write_model(tmp_path, kind)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')

    (pair,) = open_model().encode("cat", ["dog " * 100])

    assert pair.tokens == MAX_TOKENS
    assert pair.truncated


def test_the_tokenizers_limit_counts_where_it_is_lower(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 32}')

    assert open_model().encode("cat", ["dog " * 100])[0].tokens == 32
    assert open_model(max_length=48).encode("cat", ["dog " * 100])[0].tokens == 48


def test_a_max_length_beyond_the_model_is_refused(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, "xlm-roberta")

    with pytest.raises(ConfigError, match=r"max_length: .* at most 64 tokens, got 65"):
        open_model(max_length=65)


def test_identity_names_what_changes_a_logit(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path)
    first = open_model()
    others = [open_model(max_length=32), open_model(truncation="only_second")]
    assert len({scorer.identity for scorer in (first, *others)}) == 3
    assert open_model().identity == first.identity

    other_weights = make_graph(200)
    onnx.save(other_weights, str(tmp_path / "model.onnx"))

    assert open_model().identity != first.identity


@pytest.mark.parametrize(
    ("device", "offered", "expected"),
    [
        ("auto", BOTH, 0),
        ("auto", BOTH[1:], None),
        ("cpu", BOTH, None),
        ("cuda", BOTH, 0),
        ("cuda:3", BOTH, 3),
    ],
)
def test_the_device_is_chosen_among_what_is_offered(
    device: str, offered: tuple[str, ...], expected: int | None
) -> None:
    assert choose_device(device, offered) == expected


def test_a_device_of_torch_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match='no "mps", PyTorch weights do'):
        choose_device("mps", BOTH)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "CPU", "", "xpu"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"device: expected .*cuda:N"):
        choose_device(device, BOTH)


def test_cuda_where_it_is_not_offered_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"it offers CPUExecutionProvider.*onnxruntime-gpu"):
        choose_device("cuda:1", BOTH[1:])


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_cuda_that_does_not_start_is_an_error_only_where_it_was_asked_for(
    device: str,
    tmp_path: Path,
    open_model: Callable[..., OnnxScorer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_model(tmp_path)
    ort = importlib.import_module("onnxruntime")
    real = ort.InferenceSession

    def on_cpu(path: str, sess_options: object, providers: list[object]) -> object:
        assert providers[0] == ("CUDAExecutionProvider", {"device_id": 0})
        return real(path, sess_options=sess_options, providers=providers[1:])

    monkeypatch.setattr(ort, "get_available_providers", lambda: list(BOTH))
    monkeypatch.setattr(ort, "InferenceSession", on_cpu)

    if device == "cuda":
        with pytest.raises(ConfigError, match=r'could not start it.*use device="cpu"'):
            open_model(device=device)
    else:
        opened = open_model(device=device)
        assert "CPUExecutionProvider" in opened.identity
        assert opened.choices["device"] == (
            "cpu",
            "onnxruntime offers CUDA but could not start it",
        )
        # What is taken follows from what is offered, before it is known whether that starts.
        assert "fp16 or else fp32" in opened.choices["precision"].why
        assert "running on CPU" in caplog.text


def test_onnxruntime_missing_names_the_extra(
    tmp_path: Path, open_model: Callable[..., OnnxScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingExtraError, match=r'pip install "rerank-plugins\[onnx\]"'):
        open_model()


def save(graph: onnx.ModelProto, folder: Path) -> None:
    onnx.save(graph, str(folder / "model.onnx"))


def configure(folder: Path, found: str) -> None:
    (folder / "config.json").write_text('{"max_position_embeddings": 64, ' + found + "}")


def rename_input(graph: onnx.ModelProto) -> onnx.ModelProto:
    extra = onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, ["a", "b"])
    graph.graph.input.append(extra)
    return graph


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"not a graph"), "cannot read model"),
        (
            lambda folder: (folder / "model.onnx").write_bytes(
                (folder / "model.onnx").read_bytes()[:-500]
            ),
            "half downloaded",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json cannot be"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "there is no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds list, not an object"),
        (
            lambda folder: (folder / "config.json").write_text('{"a":' * 99_999),
            "config.json is nested too deeply",
        ),
        *(
            (lambda folder, found=found: configure(folder, found), expected)
            for found, expected in [
                ('"max_position_embeddings": Infinity', "holds max_position_embeddings inf, out"),
                ('"max_position_embeddings": -1e999', "holds max_position_embeddings -inf, out"),
                ('"max_position_embeddings": NaN', "holds max_position_embeddings nan, out of"),
                ('"pad_token_id": Infinity, "model_type": "roberta"', "holds pad_token_id inf"),
                ('"pad_token_id": 1e12, "model_type": "roberta"', "holds pad_token_id 1000000"),
                ('"model_type": []', r"holds model_type \[\], no name"),
                ('"max_position_embeddings": 3', "3 tokens have no room for two texts"),
            ]
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"model_max_length": 3}'),
            "3 tokens have no room for two texts .*or set max_length",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text(
                json.dumps(json.loads(make_tokenizer("bert").to_str()) | {"post_processor": None})
            ),
            "puts no special tokens around a pair",
        ),
        (lambda folder: save(make_graph(200, pooled=False), folder), "an embedding model"),
        (lambda folder: save(make_graph(200, labels=3), folder), "another kind of model"),
        (lambda folder: save(rename_input(make_graph(200)), folder), "asks for .* position_ids"),
        (lambda folder: save(make_graph(3), folder), "a trial run failed"),
    ],
)
def test_a_spoiled_model_says_what_is_wrong(
    spoil: Callable[[Path], object],
    expected: str,
    tmp_path: Path,
    open_model: Callable[..., OnnxScorer],
) -> None:
    write_model(tmp_path)
    spoil(tmp_path)

    with pytest.raises(ModelLoadError, match=expected) as caught:
        open_model()
    assert caught.value.model == str(tmp_path)


def test_missing_external_data_is_named(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, external=True)
    (tmp_path / "model.onnx_data").unlink()

    with pytest.raises(ModelLoadError, match="external data"):
        open_model()


def test_a_pad_id_that_is_none_is_refused(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, pad_token_id=10**30)
    (tmp_path / "tokenizer_config.json").unlink()

    with pytest.raises(ModelLoadError, match=r"config\.json holds pad_token_id 1000000"):
        open_model()


def test_a_limit_that_a_tokenizer_has_wrong_can_be_set(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 2}')

    assert open_model(max_length=32).encode("cat", ["dog " * 100])[0].tokens == 32


def test_the_pad_token_comes_from_the_settings(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, "xlm-roberta")
    assert open_model().pad_id == 1

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<s>"}}))
    assert open_model().pad_id == 0

    (tmp_path / "tokenizer_config.json").unlink()
    assert open_model().pad_id == 1


@pytest.mark.parametrize("file", ["", "model.onnx"])
def test_a_family_is_not_for_onnx_models(file: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    model = str(tmp_path / file) if file else str(tmp_path)

    for family in ("yes-no", "chat-template"):
        with pytest.raises(ConfigError, match=r"family: .* language models run in PyTorch only"):
            open_scorer(RerankConfig(model=model, backend="onnx", family=family))
    with pytest.raises(ConfigError, match=r"family: expected .* got 'nonsense'"):
        open_scorer(RerankConfig(model=model, backend="onnx", family="nonsense"))


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "gemma"])
def test_the_onnx_file_of_a_language_model_is_refused(kind: str, tmp_path: Path) -> None:
    """It would be given pairs where it was trained on prompts."""
    write_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": kind}))

    for model in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(ModelLoadError, match=rf"it is one \(model_type {kind}, of"):
            open_scorer(RerankConfig(model=str(model), backend="onnx"))
