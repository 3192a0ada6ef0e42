"""Logits of every architecture are those of transformers' own padded forward in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny_torch import (
    ARCHITECTURES,
    MAX_TOKENS,
    PaddedForward,
    make_pairs,
    write_torch_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_plugins.scorers.torch.scorer import TorchScorer

TOLERANCE = 1e-4
EVERY_ONE = pytest.mark.parametrize("name", ARCHITECTURES)


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("labels", [1, 2])
@EVERY_ONE
def test_every_pair_has_the_logit_of_the_padded_forward(
    name: str, labels: int, model_of: Callable[..., Any]
) -> None:
    """All 500 in one batch, of 1 token a text to beyond the limit; of two labels, 80."""
    model = model_of(name, labels)

    found = model.found(range(len(model.pairs)))

    assert_equal(found, model.expected)
    # A bound says nothing of logits that hardly differ.
    assert np.ptp(model.expected) >= 1
    assert model.expected.std() >= 0.2
    lengths = {pair.tokens for pair in model.encoded}
    assert min(lengths) <= 6
    assert max(lengths) == MAX_TOKENS


@EVERY_ONE
def test_every_length_alone_has_the_logit_of_the_padded_forward(
    name: str, model_of: Callable[..., Any]
) -> None:
    model = model_of(name)
    by_length = {pair.tokens: i for i, pair in enumerate(model.encoded)}
    assert len(by_length) > MAX_TOKENS / 2

    found = np.concatenate([model.found([i]) for i in by_length.values()])

    assert_equal(found, model.expected[list(by_length.values())])


@EVERY_ONE
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_company_in_any_order_has_the_logits_of_the_padded_forward(
    name: str, model_of: Callable[..., Any], data: st.DataObject
) -> None:
    model = model_of(name)
    chosen = data.draw(
        st.lists(st.integers(0, len(model.pairs) - 1), min_size=1, max_size=40), label="pairs"
    )

    assert_equal(model.found(chosen), model.expected[chosen])


@EVERY_ONE
def test_the_tiny_model_reads_words_order_and_sides(
    name: str, model_of: Callable[..., Any]
) -> None:
    """Without which the tests above would prove little."""
    model = model_of(name)
    pairs = [pair for pair in model.pairs[:100] if 3 < len(pair[1].split()) < 30]
    logits = model.reference.logits(pairs)
    reversed_words = [(query, " ".join(reversed(text.split()))) for query, text in pairs]
    swapped = [(text, query) for query, text in pairs]

    for others in (reversed_words, swapped):
        differences = np.abs(model.reference.logits(others) - logits)
        assert np.median(differences) > 1000 * TOLERANCE


@pytest.mark.parametrize("name", [n for n, a in ARCHITECTURES.items() if a.segments])
def test_segments_reach_the_model(name: str, model_of: Callable[..., Any]) -> None:
    """Segment ids of all zeros, as some engines send, give other logits."""
    model = model_of(name)
    chosen = range(20)
    inputs = model.reference.tokenizer(
        *map(list, zip(*(model.pairs[i] for i in chosen), strict=True)),
        padding=True,
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    )
    assert int(inputs["token_type_ids"].max()) == 1
    inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
    with torch.inference_mode():
        zeros = model.reference.model(**inputs).logits[:, 0].numpy()

    assert np.median(np.abs(zeros - model.found(chosen))) > 100 * TOLERANCE


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_looks_no_further_than_its_window(
    pooling: str, model_of: Callable[..., Any]
) -> None:
    """Its logits are not those of attention over all tokens, nor of a window one wider."""
    model = model_of(f"modernbert {pooling}")
    chosen = [i for i, pair in enumerate(model.encoded) if pair.tokens == MAX_TOKENS][:20]

    for window in (10, 2 * MAX_TOKENS):
        other = PaddedForward(model.folder, local_attention=window)
        difference = np.abs(other.logits([model.pairs[i] for i in chosen]) - model.found(chosen))
        assert np.median(difference) > 100 * TOLERANCE


@EVERY_ONE
def test_the_eager_attention_of_transformers_agrees(
    name: str, model_of: Callable[..., Any]
) -> None:
    """The other tests take its default, sdpa where it has one."""
    model = model_of(name)
    reference = PaddedForward(model.folder, attn_implementation="eager")

    assert_equal(model.found(range(30)), reference.logits(model.pairs[:30]))


@pytest.mark.parametrize("max_length", [16, 33])
@EVERY_ONE
def test_a_shorter_limit_cuts_as_the_tokenizer_does(
    name: str, max_length: int, model_of: Callable[..., Any], tmp_path: Path, open_torch: Any
) -> None:
    model = model_of(name)
    scorer = open_torch(model=str(model.folder), max_length=max_length)
    pairs = model.pairs[60:100]
    encoded = [scorer.encode(query, [document])[0] for query, document in pairs]

    assert max(pair.tokens for pair in encoded) == max_length
    expected = model.reference.logits(pairs, max_length=max_length)
    assert_equal(scorer.forward(encoded), expected)


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "roberta"])
def test_truncation_from_the_left_gives_the_reference_logits(
    name: str, tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path, name, tokenizer_config={"truncation_side": "left"})
    pairs = make_pairs(100, seed=3)[60:]
    scorer = open_torch()
    encoded = [scorer.encode(query, [document])[0] for query, document in pairs]

    assert sum(pair.truncated for pair in encoded) > 10
    assert_equal(scorer.forward(encoded), PaddedForward(tmp_path).logits(pairs))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
        ("xlm-roberta", {"num_attention_heads": 1, "intermediate_size": 48}),
        ("roberta", {"pad_token_id": 0}),
        ("roberta", {"pad_token_id": 3, "max_position_embeddings": MAX_TOKENS + 4}),
        ("modernbert cls", {"local_attention": 4, "global_attn_every_n_layers": 2}),
        ("modernbert mean", {"hidden_activation": "silu", "mlp_bias": True}),
        ("distilbert", {"sinusoidal_pos_embds": True}),
        ("deberta-v2", {"share_att_key": True, "norm_rel_ebd": "layer_norm"}),
        ("deberta-v2", {"relative_attention": False}),
    ],
)
def test_what_a_config_changes_is_followed(
    name: str, config: dict[str, Any], tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path, name, **config)
    pairs = make_pairs(60, seed=4)
    scorer = open_torch()

    found = scorer.forward([scorer.encode(query, [text])[0] for query, text in pairs])

    assert_equal(found, PaddedForward(tmp_path).logits(pairs))
