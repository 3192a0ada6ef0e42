"""The ONNX scorer gives the logits that onnxruntime gives by hand, whatever the batch."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from examples.rerank_by_hand import score_by_hand
from rerank_plugins.errors import (
    OutOfMemoryError,
    ScoringError,
)
from tests.tiny_models import MAX_TOKENS, Kind, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_plugins.scorers.onnx.scorer import OnnxScorer

KINDS: tuple[Kind, ...] = ("bert", "xlm-roberta", "roberta")
QUERY = "the cat on a tree"


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
    ("message", "advice"),
    [
        ("Failed to allocate memory for requested buffer of size 9", "lower batch_tokens"),
        ("std::bad_alloc", "lower batch_tokens"),
        ("CUDA failure 2: out of memory", "lower batch_tokens"),
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
    assert isinstance(caught.value, OutOfMemoryError) == (advice == "lower batch_tokens")
    assert not caught.value.retryable
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_closed_scorer_says_so(tmp_path: Path, open_model: Callable[..., OnnxScorer]) -> None:
    write_model(tmp_path)
    scorer = open_model()
    scorer.close()

    with pytest.raises(ScoringError, match="was closed"):
        logits(scorer, "cat", ["dog"])


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
