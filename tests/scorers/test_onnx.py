"""The ONNX scorer gives the logits that onnxruntime gives by hand, whatever the batch."""

from __future__ import annotations

import importlib
import json
import random
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from examples.rerank_by_hand import score_by_hand
from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import (
    ConfigError,
    MissingExtraError,
    ModelLoadError,
    ScoringError,
)
from rerank_plugins.scorers.onnx import OnnxScorer, choose_device
from tests.tiny_models import MAX_TOKENS, Kind, make_graph, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS: tuple[Kind, ...] = ("bert", "xlm-roberta", "roberta")
QUERY = "the cat on a tree"
BOTH = ("CUDAExecutionProvider", "CPUExecutionProvider")


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


def logits(scorer: OnnxScorer, query: str, documents: list[str]) -> np.ndarray:
    return scorer.forward(scorer.encode(query, documents))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_onnxruntime_by_hand_at_every_length(
    kind: Kind, tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    """From no word to beyond max_length; each alone by hand, all in one padded batch here."""
    write_model(tmp_path, kind)
    documents = [
        " ".join(random.Random(n).choices(["the", "cat", "dog", "sat"], k=n)) for n in range(75)
    ]
    scorer = open_model()

    found = logits(scorer, QUERY, documents)

    by_hand = score_by_hand(tmp_path, QUERY, documents, MAX_TOKENS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand, rtol=1e-6, atol=1e-6)
    assert len(set(by_hand)) > 60


@pytest.mark.parametrize("kind", KINDS)
def test_company_does_not_change_a_logit(
    kind: Kind, tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, kind)
    scorer = open_model()
    pairs = scorer.encode(QUERY, ["cat", "dog " * 80, "tree mat", ""]) + scorer.encode("a", ["b"])
    alone = np.concatenate([scorer.forward([pair]) for pair in pairs])

    for seed in range(20):
        chosen = random.Random(seed).choices(range(len(pairs)), k=seed % 6 + 1)
        together = scorer.forward([pairs[i] for i in chosen])
        np.testing.assert_allclose(together, alone[chosen], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("text", "other"), [("cat sat dog", "dog sat cat"), ("cat", "cat cat")])
def test_the_tiny_model_reads_order_and_mask(
    text: str, other: str, tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    """Without which the tests above would prove little."""
    write_model(tmp_path)
    first, second = logits(open_model(), QUERY, [text, other])

    assert abs(first - second) > 1e-4


def test_segments_reach_the_graph(tmp_path: Path, open_model: Callable[..., OnnxScorer]) -> None:
    """Segment ids of all zeros, as some engines send, give another logit."""
    write_model(tmp_path)
    scorer = open_model()
    (pair,) = scorer.encode(QUERY, ["the dog"])
    session = scorer._session
    assert session is not None
    ids = pair.ids[None].astype(np.int64)
    zeros = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}

    assert abs(session.run(zeros)[0, 0] - scorer.forward([pair])[0]) > 1e-3


def test_two_labels_give_their_difference(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    """So that the sigmoid of the logit is the softmax probability of the second label."""
    write_model(tmp_path, labels=2)
    scorer = open_model()
    pairs = scorer.encode(QUERY, ["cat", "dog tree"])
    labels = scorer._run(pairs)
    softmax = np.exp(labels) / np.exp(labels).sum(axis=1, keepdims=True)

    sigmoid = 1 / (1 + np.exp(-scorer.forward(pairs)))

    np.testing.assert_allclose(sigmoid, softmax[:, 1], atol=1e-6)


def test_half_precision_logits_are_float32(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, onnx_names=("onnx/model.onnx", "onnx/model_fp16.onnx"))
    half, full = open_model(precision="fp16"), open_model()

    assert "model_fp16.onnx" in half.identity
    assert "model.onnx" in full.identity
    found = logits(half, QUERY, ["cat", "dog"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, logits(full, QUERY, ["cat", "dog"]), atol=1e-2)


def test_external_data_is_read_and_part_of_the_identity(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, external=True)
    before = open_model()
    data = tmp_path / "model.onnx_data"
    raw = bytearray(data.read_bytes())
    raw[3] ^= 0x40
    data.write_bytes(raw)

    assert before.identity != open_model().identity


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


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "CPU", "", "mps"])
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
        assert "CPUExecutionProvider" in open_model(device=device).identity
        assert "running on CPU" in caplog.text


def test_onnxruntime_missing_names_the_extra(
    tmp_path: Path, open_model: Callable[..., OnnxScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingExtraError, match=r'pip install "rerank-plugins\[onnx\]"'):
        open_model()


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("Failed to allocate memory for requested buffer of size 9", "lower batch_tokens"),
        ("std::bad_alloc", "lower batch_tokens"),
        ("Non-zero status code", "Non-zero"),
    ],
)
def test_what_onnxruntime_raises_becomes_a_scoring_error(
    message: str,
    advice: str,
    tmp_path: Path,
    open_model: Callable[..., OnnxScorer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_model(tmp_path)
    scorer = open_model()

    def fail(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(scorer, "_session", SimpleNamespace(run=fail))

    with pytest.raises(ScoringError, match=r"2 pairs of up to .* tokens") as caught:
        logits(scorer, "cat", ["dog", "tree mat"])
    assert advice in str(caught.value)
    assert not caught.value.retryable
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_closed_scorer_says_so(tmp_path: Path, open_model: Callable[..., OnnxScorer]) -> None:
    write_model(tmp_path)
    scorer = open_model()
    scorer.close()

    with pytest.raises(ScoringError, match="was closed"):
        logits(scorer, "cat", ["dog"])


def save(graph: onnx.ModelProto, folder: Path) -> None:
    onnx.save(graph, str(folder / "model.onnx"))


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


def test_a_graph_of_32_bit_integers_is_fed_them(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path)
    expected = logits(open_model(), QUERY, ["cat"])
    graph = onnx.load(str(tmp_path / "model.onnx"))
    for value in graph.graph.input:
        value.type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.save(graph, str(tmp_path / "model.onnx"))

    np.testing.assert_allclose(logits(open_model(), QUERY, ["cat"]), expected, atol=1e-6)


def test_the_pad_token_comes_from_the_settings(
    tmp_path: Path, open_model: Callable[..., OnnxScorer]
) -> None:
    write_model(tmp_path, "xlm-roberta")
    assert open_model()._pad_id == 1

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<s>"}}))
    assert open_model()._pad_id == 0

    (tmp_path / "tokenizer_config.json").unlink()
    assert open_model()._pad_id == 1
