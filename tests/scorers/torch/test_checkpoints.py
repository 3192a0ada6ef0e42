"""Checkpoints as they are found in the world give what transformers makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from tests.tiny_torch import PaddedForward, make_pairs, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_plugins.scorers.torch.scorer import TorchScorer

TOLERANCE = 1e-4
WEIGHTS = "model.safetensors"
PAIRS = make_pairs(60, seed=8)


def save_half(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(folder)


def save_in_shards(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len([*folder.glob("model-*.safetensors")]) > 2


def rename(folder: Path, old: str, new: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    assert any(old in name for name in tensors)
    renamed = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})


def save_as_tensorflow_names_them(folder: Path) -> None:
    """The checkpoints of BERT's first years."""
    rename(folder, "LayerNorm.weight", "LayerNorm.gamma")
    rename(folder, "LayerNorm.bias", "LayerNorm.beta")


def save_a_buffer_too(folder: Path) -> None:
    """As transformers did before version 4.31."""
    tensors = load_file(folder / WEIGHTS)
    tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def set_in(name: str, **settings: object) -> Callable[[Path], object]:
    def set_it(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return set_it


CHANGES: dict[str, Callable[[Path], object]] = {
    "half precision": save_half,
    "shards": save_in_shards,
    "gamma and beta": save_as_tensorflow_names_them,
    "a buffer": save_a_buffer_too,
    "hidden states put out": set_in("config.json", output_hidden_states=True),
    "attentions put out": set_in("config.json", output_attentions=True),
    "tuples returned": set_in("config.json", return_dict=False),
    "feed-forward in chunks": set_in("config.json", chunk_size_feed_forward=8),
    "an attention chosen": set_in("config.json", attn_implementation="eager"),
    "training dropout": set_in("config.json", hidden_dropout_prob=0.5),
    "a tokenizer without segments": set_in(
        "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"]
    ),
    "a tokenizer that pads on the left": set_in("tokenizer_config.json", padding_side="left"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_is_read_as_transformers_reads_it(
    change: Callable[[Path], object], tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path)
    change(tmp_path)
    reference = PaddedForward(tmp_path, return_dict=True)
    reference.tokenizer.padding_side = "right"
    scorer = open_torch()

    found = scorer.forward([scorer.encode(query, [text])[0] for query, text in PAIRS])

    np.testing.assert_allclose(found, reference.logits(PAIRS), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bert", "fp16"),
        ("bert", "bf16"),
        ("modernbert mean", "bf16"),
        ("albert groups", "bf16"),
        ("deberta-v2", "bf16"),
    ],
)
def test_half_precision_keeps_near_the_logits_of_float32(
    name: str, dtype: str, model_of: Callable[..., Any], open_torch: Callable[..., TorchScorer]
) -> None:
    """A rounding of 8 bits is a drift; a weight in the wrong place would be another ranking."""
    model = model_of(name)
    scorer = open_torch(model=str(model.folder), precision=dtype)

    found = scorer.forward(model.encoded[:60])

    assert found.dtype == np.float32
    expected = model.expected[:60]
    assert np.abs(found - expected).mean() < 0.25 * expected.std()
    assert len(np.unique(found)) > 50
