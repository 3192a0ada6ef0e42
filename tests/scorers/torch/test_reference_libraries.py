"""Ids and scores are those of the libraries that users come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer

from rerank_plugins import Reranker
from tests.tiny_torch import ARCHITECTURES, MAX_TOKENS, make_pairs, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins.scorers.torch.scorer import TorchScorer

TOLERANCE = 1e-4
ONE_OF_A_TOKENIZER = ("bert", "xlm-roberta", "roberta")
FLAG_EMBEDDING = json.loads(
    Path(__file__).with_name("flag_embedding.json").read_text(encoding="utf-8")
)
IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity"}
SIGMOID = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
QUERY = "where is the river bank"
DOCUMENTS = [document for _, document in make_pairs(40, seed=9)]


def scores_of(folder: Path, **settings: Any) -> np.ndarray:
    """Return the scores of DOCUMENTS through the engine, in their order."""
    exact = {"backend": "torch", "device": "cpu", "precision": "fp32", "normalizer": None}
    with Reranker(str(folder), **exact | settings) as reranker:
        return np.array(reranker.score([(QUERY, text) for text in DOCUMENTS]))


def predict(folder: Path, **settings: Any) -> np.ndarray:
    """Return what sentence-transformers answers for the same documents."""
    model = CrossEncoder(str(folder), device="cpu")
    return model.predict([(QUERY, text) for text in DOCUMENTS], batch_size=8, **settings)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_equal_those_of_sentence_transformers(
    name: str, model_of: Callable[..., Any]
) -> None:
    folder = model_of(name).folder

    expected = predict(folder)

    np.testing.assert_allclose(scores_of(folder), expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(expected) > 0.1
    assert 0 <= expected.min() <= expected.max() <= 1


@pytest.mark.parametrize(
    ("config", "sigmoid"),
    [
        ({"sentence_transformers": IDENTITY}, False),
        ({"sentence_transformers": SIGMOID}, True),
        ({"sbert_ce_default_activation_function": IDENTITY["activation_fn"]}, False),
        ({"sbert_ce_default_activation_function": SIGMOID["activation_fn"]}, True),
        ({"sbert_ce_default_activation_function": None}, True),
        ({"sentence_transformers": {"version": "5.0"}}, True),
    ],
)
def test_activation_is_the_one_that_sentence_transformers_reads(
    config: dict[str, Any], sigmoid: bool, tmp_path: Path
) -> None:
    write_torch_model(tmp_path, "xlm-roberta", **config)

    expected = predict(tmp_path)

    np.testing.assert_allclose(scores_of(tmp_path), expected, rtol=0, atol=TOLERANCE)
    assert (expected.min() >= 0 and expected.max() <= 1) == sigmoid


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "modernbert cls"])
def test_of_two_labels_the_score_is_the_softmax_of_the_second(
    name: str, model_of: Callable[..., Any]
) -> None:
    """And the logit their difference; sentence-transformers gives both labels."""
    folder = model_of(name, 2).folder

    labels = predict(folder)
    softmax = predict(folder, apply_softmax=True)

    assert labels.shape == (len(DOCUMENTS), 2)
    logits = scores_of(folder, activation="logit")
    np.testing.assert_allclose(logits, labels[:, 1] - labels[:, 0], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(scores_of(folder), softmax[:, 1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ONE_OF_A_TOKENIZER)
def test_longest_first_gives_the_ids_of_the_tokenizer(
    name: str, side: str, tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path, name, tokenizer_config={"truncation_side": side})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for max_length in (16, 31, MAX_TOKENS):
        scorer = open_torch(max_length=max_length)
        for query, document in make_pairs(60, seed=1):
            expected = tokenizer(query, document, truncation="longest_first", max_length=max_length)
            assert_encodes(scorer, query, document, expected)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ONE_OF_A_TOKENIZER)
def test_only_second_gives_the_ids_of_the_tokenizer_where_the_query_is_short(
    name: str, side: str, tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path, name, tokenizer_config={"truncation_side": side})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    scorer = open_torch(truncation="only_second")
    short = [pair for pair in make_pairs(120, seed=2) if len(pair[0]) < MAX_TOKENS * 3 // 4]
    for query, document in short:
        expected = tokenizer(query, document, truncation="only_second", max_length=MAX_TOKENS)
        assert_encodes(scorer, query, document, expected)


def assert_encodes(scorer: TorchScorer, query: str, document: str, expected: Any) -> None:
    (pair,) = scorer.encode(query, [document])
    assert pair.ids.tolist() == expected["input_ids"]
    if "token_type_ids" in expected:
        assert pair.segments is not None
        assert pair.segments.tolist() == expected["token_type_ids"]


@pytest.mark.parametrize(
    "run",
    FLAG_EMBEDDING["runs"],
    ids=lambda run: f"{run['model']}-{run['truncation_side']}-{run['max_length']}",
)
def test_only_second_gives_the_ids_and_scores_of_flag_embedding(
    run: dict[str, Any], tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    """Recorded from the real library, with queries beyond its cap among them."""
    side = {"truncation_side": run["truncation_side"]}
    write_torch_model(tmp_path, run["model"], tokenizer_config=side)
    scorer = open_torch(truncation="only_second", max_length=run["max_length"])
    pairs = [scorer.encode(query, [text])[0] for query, text in FLAG_EMBEDDING["pairs"]]

    assert [pair.ids.tolist() for pair in pairs] == run["ids"]
    for pair, segments in zip(pairs, run["segments"], strict=True):
        assert segments is None or (
            pair.segments is not None and pair.segments.tolist() == segments
        )
    np.testing.assert_allclose(scorer.forward(pairs), run["logits"], rtol=0, atol=TOLERANCE)
    assert sum(len(ids) == run["max_length"] for ids in run["ids"]) >= 3
